/** luks images in memory for the suites: the header is made once (that takes a measurement of the machine), and every image has a copy of it.
 *  New disks are filled with encrypted zeros, because that is what the suites' models begin with. */
import { resolveOptions } from '../../src/base/options.ts';
import type { Codecs } from '../../src/codec/codecs.ts';
import { createCodecs } from '../../src/codec/create.ts';
import type { OpenContext } from '../../src/core/format.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { ALL_RULES } from '../../src/core/safety.ts';
import { secretsOf } from '../../src/core/secrets.ts';
import { CacheBudget } from '../../src/core/table-cache.ts';
import type { AlgorithmOptions } from '../../src/crypto/algorithms.ts';
import { createLuks, planLuks } from '../../src/crypto/create-luks.ts';
import { luks } from '../../src/formats/luks/driver.ts';
import { openOptions } from '../../src/formats/luks/options.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import type { ImageUnderTest } from '../../src/testing/format-suite.ts';
import type { FormatUnderTest, OpenUnderTest } from '../../src/testing/model.ts';
import { MemoryArea, quickCrypto, SUBJECT, utf8 } from '../crypto/support.ts';

export const PASSWORD = 'correct horse';

export interface LuksVariant extends AlgorithmOptions {
  readonly detached?: boolean;
}

const headers = new Map<string, Promise<Uint8Array>>();

/** Header and key material of a volume that {@link PASSWORD} opens. */
export function luksHeader(variant: LuksVariant = {}): Promise<Uint8Array> {
  const key = JSON.stringify(variant);
  let made = headers.get(key);
  if (made === undefined) {
    made = makeHeader(variant);
    headers.set(key, made);
  }
  return made;
}

async function makeHeader(variant: LuksVariant): Promise<Uint8Array> {
  const area = new MemoryArea(planLuks(variant, SUBJECT).headerBytes);
  const { key } = await createLuks(area, quickCrypto(), {
    ...variant,
    subject: SUBJECT,
    passphrase: utf8(PASSWORD),
    iterTime: 0,
  });
  key.wipe();
  return area.bytes;
}

/** A disk whose encryption is made of whatever the file has: zeros, so noise for the guest. */
export async function luksFile(size: number, variant: LuksVariant = {}): Promise<MemoryStore> {
  const header = await luksHeader(variant);
  const file = new MemoryStore({ name: 'disk', pageSize: 4096 });
  if (variant.detached !== true) await file.write(0, header);
  await file.truncate((variant.detached === true ? 0 : header.length) + size);
  return file;
}

export interface OpenLuks extends Partial<OpenUnderTest> {
  readonly header?: BlockNode;
  readonly codecs?: Codecs;
}

const here = createCodecs({ workers: 0 });

export async function openLuksNode(file: BlockNode, options: OpenLuks = {}): Promise<MappedNode> {
  const { readOnly = false, header, codecs = here } = options;
  const rules = options.rules ?? ALL_RULES;
  const context: OpenContext = {
    file,
    name: 'disk',
    readOnly,
    forCheck: false,
    unsafe: false,
    rules,
    cache: options.cache ?? new CacheBudget(64 * 1024),
    codecs,
    openReference: () => Promise.resolve(header as BlockNode),
    referenceStatus: () => Promise.resolve(undefined),
    secret: secretsOf({ key: PASSWORD }),
    report: () => undefined,
  };
  const given = { keySecret: 'key', ...(header === undefined ? {} : { header: 'header' }) };
  return mappedNode(await luks.open(context, resolveOptions(openOptions, given)), { name: 'disk', rules });
}

/** The file of a disk of zeros, closed. */
async function zeroedFile(size: number, variant: LuksVariant): Promise<MemoryStore> {
  const file = await luksFile(size, variant);
  const node = await openVariant(file, variant);
  await node.write(0, new Uint8Array(size));
  await node.close();
  return file;
}

async function openVariant(file: BlockNode, variant: LuksVariant, options: OpenLuks = {}): Promise<MappedNode> {
  if (variant.detached !== true) return openLuksNode(file, options);
  return openLuksNode(file, { ...options, header: MemoryStore.from(await luksHeader(variant)) });
}

/** The `create` of the format suite. */
export function luksImage(
  variant: LuksVariant = {},
  wrap: (file: BlockNode) => BlockNode = (file) => file,
): (size: number) => Promise<ImageUnderTest> {
  return async (size) => {
    let file = await zeroedFile(size, variant);
    const reopen = (readOnly: boolean): Promise<BlockNode> => {
      file = file.reopen({ readOnly });
      return openVariant(wrap(file), variant, { readOnly });
    };
    return { disk: await reopen(false), reopen };
  };
}

export function luksUnderTest(variant: LuksVariant = {}): FormatUnderTest {
  return {
    name: `luks ${JSON.stringify(variant)}`,
    unit: 512,
    create: async (size) => [(await zeroedFile(size, variant)).bytes()],
    open: async ([file], options) => ({ node: await openVariant(file as BlockNode, variant, options) }),
    // There is nothing that could be inconsistent.
    check: () => Promise.resolve({ corruptions: [], leaks: 0 }),
  };
}
