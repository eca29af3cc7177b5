/** add-cow as the model and crash harness wants it: two files in memory, the add-cow file and its image file, made by our own create. What the
 *  image file held before is stale, 0xEE everywhere, and must never be read. */
import { resolveOptions } from '../../src/base/options.ts';
import { createCodecs } from '../../src/codec/create.ts';
import type { CheckFix, CheckResult, OpenContext, Reference } from '../../src/core/format.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { ALL_RULES } from '../../src/core/safety.ts';
import { secretsOf } from '../../src/core/secrets.ts';
import { CacheBudget } from '../../src/core/table-cache.ts';
import { createAddCow } from '../../src/formats/add-cow/create.ts';
import { addCow } from '../../src/formats/add-cow/driver.ts';
import { createOptions } from '../../src/formats/add-cow/options.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import type { ImageUnderTest, OpenBacking } from '../../src/testing/format-suite.ts';
import type { FormatUnderTest, OpenUnderTest } from '../../src/testing/model.ts';
import { FoldedStore, type Folding, SpreadNode } from './add-cow-folded.ts';

export const codecs = createCodecs({ workers: 0 });

/** What stale bytes are. */
export const STALE = 0xee;

export interface AddCowVariant {
  readonly compat?: 'v9' | 'v20';
  /** Of v20; 4 KiB by default. */
  readonly clusterSize?: number;
  /** Without a backing file v20 says that everything is allocated; `false` takes that back, and the bitmap counts. */
  readonly allAllocated?: boolean;
  /** `share` of the harness makes the disk larger. */
  readonly grow?: boolean;
  /** Regions of the disk lie so far apart that each has tables of its own. */
  readonly folding?: Folding;
}

export function unitOf({ compat, clusterSize = 4096 }: AddCowVariant): number {
  return compat === 'v9' ? 64 * 1024 : clusterSize;
}

export interface AddCowFilesUnderTest {
  readonly file: MemoryStore;
  readonly image: MemoryStore;
}

/** Creates an image over a stale image file. */
export async function createAddCowFiles(
  size: number,
  variant: AddCowVariant,
  hasBacking: boolean,
): Promise<AddCowFilesUnderTest> {
  const { compat = 'v20', clusterSize = 4096, folding } = variant;
  const file = new MemoryStore({ name: 'disk', pageSize: 512 });
  const whole = !hasBacking && compat === 'v20' && variant.allAllocated !== false;
  const image = whole || folding !== undefined ? sparse(folding?.size ?? size) : stale(size);
  await createAddCow(
    {
      file,
      name: 'disk',
      createReference: () => Promise.resolve(image),
      secret: secretsOf(undefined),
      referenceStatus: () => Promise.resolve(undefined),
    },
    folding?.size ?? size,
    resolveOptions(createOptions, {
      compat,
      ...(compat === 'v9' ? {} : { clusterSize }),
      imageFile: 'image',
      ...(hasBacking || compat === 'v9' ? { backingFile: 'backing', backingFmt: 'raw' } : {}),
    }),
  );
  if (compat === 'v9' && !hasBacking) await file.write(12, new Uint8Array(1024));
  if (compat === 'v20' && !hasBacking && !whole) await file.write(32, new Uint8Array(8));
  // Its creator has closed it.
  return { file, image: folding === undefined ? image.reopen() : stale(size) };
}

/** Too large a file is no place for bytes. */
const STALE_AT_MOST = 64 * 1024 * 1024;

function stale(size: number): MemoryStore {
  if (size > STALE_AT_MOST) return sparse(size);
  return MemoryStore.from(new Uint8Array(size).fill(STALE), { name: 'image', pageSize: 512 });
}

function sparse(size: number): MemoryStore {
  return new MemoryStore({ name: 'image', size, pageSize: 4096 });
}

export interface OpenAddCow extends Partial<OpenUnderTest> {
  readonly forCheck?: boolean;
  readonly unsafe?: boolean;
}

export async function openAddCow(file: BlockNode, image: BlockNode, options: OpenAddCow = {}): Promise<MappedNode> {
  const rules = options.rules ?? ALL_RULES;
  const context: OpenContext = {
    file,
    name: 'disk',
    readOnly: options.readOnly ?? false,
    forCheck: options.forCheck ?? false,
    unsafe: options.unsafe ?? false,
    rules,
    cache: options.cache ?? new CacheBudget(1 << 20),
    codecs,
    secret: secretsOf(undefined),
    referenceStatus: () => Promise.resolve(undefined),
    openReference: ({ role }: Reference) => {
      const node = role === 'data' ? image : options.backing;
      return node === undefined ? Promise.reject(new Error(`there is no ${role} file`)) : Promise.resolve(node);
    },
    report: () => undefined,
  };
  const node = await addCow.open(context, resolveOptions(addCow.openOptions, {}));
  return mappedNode(node, { name: 'disk', rules });
}

/** Checks an image by its bytes, its backing file not looked at. */
export async function checkAddCow(
  file: BlockNode,
  image: BlockNode,
  fix: CheckFix = 'none',
): Promise<CheckResult & { lines: string[] }> {
  const backing = new MemoryStore({ name: 'backing', readOnly: true });
  const node = await openAddCow(file, image, { readOnly: fix === 'none', forCheck: true, backing });
  const lines: string[] = [];
  const result = await node.format.check?.check({ fix, onFinding: ({ message }) => void lines.push(message) });
  if (result === undefined) throw new Error('the format has no check');
  await node.close();
  return { ...result, lines };
}

/** The `create` of the format suite. */
export function addCowImage(
  variant: AddCowVariant,
): (size: number, backing: OpenBacking | undefined) => Promise<ImageUnderTest> {
  return async (size, backing) => {
    let { file, image } = await createAddCowFiles(size, variant, backing !== undefined);
    const open = (readOnly: boolean): Promise<MappedNode> =>
      openAddCow(file, image, {
        readOnly,
        cache: new CacheBudget(64 * 1024),
        ...(backing === undefined ? {} : { backing: backing() }),
      });
    const reopen = (readOnly: boolean): void => {
      file = file.reopen({ readOnly });
      image = image.reopen({ readOnly });
    };
    return {
      disk: await open(false),
      reopen: async (readOnly) => {
        reopen(readOnly);
        return await open(readOnly);
      },
      check: async () => {
        reopen(true);
        return await checkAddCow(file, image);
      },
    };
  };
}

export function addCowUnderTest(variant: AddCowVariant = {}): FormatUnderTest {
  const { folding } = variant;
  const unit = unitOf(variant);
  let firstSize = 0;
  return {
    name: `add-cow ${JSON.stringify(variant)}`,
    unit,
    create: async (size, { hasBacking }) => {
      firstSize = size;
      const { file, image } = await createAddCowFiles(size, variant, hasBacking);
      return [file.bytes(), image.bytes()];
    },
    open: async ([file, image], options) => {
      if (file === undefined || image === undefined) throw new Error('two files are needed');
      if (folding !== undefined) {
        const backing = options.backing && new FoldedStore(options.backing, folding);
        const node = await openAddCow(file, new FoldedStore(image, folding), { ...options, backing });
        return { node: new SpreadNode(node, folding) };
      }
      const node = await openAddCow(file, image, options);
      if (variant.grow !== true) return { node };
      let { size } = node;
      return {
        // The harness knows the disk by its first size.
        node: withSize(node, firstSize),
        share: async () => {
          size += 3 * unit + 512;
          await node.truncate(size);
        },
        readShared: async () => {
          const grown = new Uint8Array(node.size - firstSize);
          await node.read(firstSize, grown);
          if (grown.some((byte) => byte !== 0)) throw new Error('what has grown does not read as zero');
          // Nothing is frozen but the fact that the disk has grown.
          return node.size > firstSize ? new Uint8Array(0) : undefined;
        },
      };
    },
    check: async ([file, image]) => {
      const data = MemoryStore.from(image as Uint8Array);
      const { corruptions, leaks, lines } = await checkAddCow(
        MemoryStore.from(file as Uint8Array),
        folding === undefined ? data : new FoldedStore(data, folding),
      );
      return { corruptions: corruptions > 0 ? lines : [], leaks };
    },
  };
}

function withSize(node: MappedNode, size: number): BlockNode {
  return new Proxy(node, {
    get(target, key) {
      if (key === 'size') return size;
      const value = Reflect.get(target, key, target) as unknown;
      return typeof value === 'function' ? (value as (...args: unknown[]) => unknown).bind(target) : value;
    },
  });
}
