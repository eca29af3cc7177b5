/** What the cases of the format suite work with: an image, the flat model of its disk, and how a driver becomes one. */
import type { MaybePromise } from '../base/async.ts';
import { type OptionSchema, type OptionsInput, resolveOptions } from '../base/options.ts';
import type { Codecs } from '../codec/codecs.ts';
import type { CheckResult, FormatDriver, FormatNode, OpenContext, Reference, ReferenceStatus } from '../core/format.ts';
import { mappedNode } from '../core/mapped-node.ts';
import type { BlockNode } from '../core/node.ts';
import { ALL_RULES } from '../core/safety.ts';
import { secretsOf } from '../core/secrets.ts';
import { CacheBudget } from '../core/table-cache.ts';
import { MemoryStore } from '../storage/memory.ts';
import { below } from './random.ts';
import { ensure, ensureSame, type TestFramework } from './store-bench.ts';

/** Opens the backing file: a fresh read-only store each time. */
export type OpenBacking = () => BlockNode;

export interface ImageUnderTest {
  /** The new image, open for writing. */
  readonly disk: BlockNode;
  /** Opens it again; what was opened before is closed. */
  reopen(readOnly: boolean): MaybePromise<BlockNode>;
  /** Consistency of the closed image, where the format has a check. */
  check?(): MaybePromise<Pick<CheckResult, 'checkErrors' | 'corruptions' | 'leaks'>>;
  /** Called last, after everything was closed. */
  dispose?(): MaybePromise<void>;
}

/** What the format can; the tests of the rest are left out. */
export interface FormatAbilities {
  readonly backing?: boolean;
  readonly compress?: boolean;
  readonly resize?: 'grow' | 'any';
  /** Discarded whole units read as zero, or keep what they have (`hint`, the default). */
  readonly discard?: 'zeroes' | 'hint';
}

export interface FormatSuiteOptions extends TestFramework {
  /** What the tests are called after. */
  readonly name: string;
  readonly abilities: FormatAbilities;
  /** Makes an image of `size` bytes and opens it for writing. */
  create(size: number, backing: OpenBacking | undefined): MaybePromise<ImageUnderTest>;
  /** Allocation unit, bytes; the disks of the tests are a dozen units long. */
  readonly unit: number;
  /** Sizes are multiples of it; 512 by default. */
  readonly sizeAlign?: number;
  /** A size whose far end costs no space to write to; tested where given. */
  readonly largeSize?: number;
  /** 1 by default. */
  readonly seed?: number;
  /** Requests of the random test; 200 by default. */
  readonly steps?: number;
}

export interface FormatBench {
  readonly subject: ImageUnderTest;
  /** Changes when a case opens the image again. */
  disk: BlockNode;
  /** What the disk must read as; a case that resizes replaces it. */
  model: Uint8Array;
  readonly unit: number;
  readonly options: FormatSuiteOptions;
  readonly random: () => number;
}

/** Writes the disk and the model. */
export async function put(bench: FormatBench, offset: number, bytes: Uint8Array): Promise<void> {
  await bench.disk.write(offset, bytes);
  bench.model.set(bytes, offset);
}

export async function putZeroes(bench: FormatBench, offset: number, length: number, unmap: boolean): Promise<void> {
  await bench.disk.writeZeroes(offset, length, { unmap });
  bench.model.fill(0, offset, offset + length);
}

/** Discards; where that is only a hint, the model takes what the disk has, which may be zeros or the old bytes and nothing else. */
export async function drop(bench: FormatBench, offset: number, length: number): Promise<void> {
  const { disk, model, unit } = bench;
  await disk.discard(offset, length);
  if (bench.options.abilities.discard === 'zeroes') {
    const start = Math.ceil(offset / unit) * unit;
    const end = offset + length === model.length ? model.length : Math.floor((offset + length) / unit) * unit;
    if (start < end) model.fill(0, start, end);
    return;
  }
  const found = new Uint8Array(length);
  await disk.read(offset, found);
  for (let i = 0; i < length; i++) {
    const old = model[offset + i];
    ensure(found[i] === 0 || found[i] === old, `byte ${offset + i} is neither zero nor what it was after a discard`);
  }
  model.set(found, offset);
}

/** The whole disk, and random parts of it, against the model. */
export async function verify(bench: FormatBench): Promise<void> {
  const { disk, model, random } = bench;
  ensure(disk.size === model.length, `the disk has ${disk.size} bytes, expected ${model.length}`);
  await verifyPart(bench, 0, model.length);
  for (let i = 0; i < 10 && model.length > 0; i++) {
    const offset = below(random, model.length);
    await verifyPart(bench, offset, below(random, model.length - offset));
  }
}

export async function verifyPart({ disk, model }: FormatBench, offset: number, length: number): Promise<void> {
  // Not zero at first: a byte that is not filled shows.
  const found = new Uint8Array(length).fill(0x5a);
  await disk.read(offset, found);
  ensureSame(found, model.subarray(offset, offset + length), offset);
}

/** Closes the image and opens it again. */
export async function reopen(bench: FormatBench, readOnly = false): Promise<void> {
  await bench.disk.close();
  bench.disk = await bench.subject.reopen(readOnly);
}

export interface DriverUnderTest<O extends OptionSchema, C extends OptionSchema> {
  readonly driver: FormatDriver<string, O, C>;
  readonly codecs: Codecs;
  readonly openOptions?: OptionsInput<O>;
  /** @param backing the name that the backing file will be opened by; `undefined`: there is none. */
  createOptions?(backing: string | undefined): OptionsInput<C>;
  /** Bytes of tables in memory; 64 KiB by default. */
  readonly cacheBytes?: number;
  /** Puts something between the driver and its file: a store that answers late, say. */
  wrap?(file: BlockNode): BlockNode;
}

/** The `create` of a suite for a driver: images in memory. */
export function createByDriver<O extends OptionSchema, C extends OptionSchema>(
  subject: DriverUnderTest<O, C>,
): (size: number, backing: OpenBacking | undefined) => Promise<ImageUnderTest> {
  return async (size, backing) => {
    const image = new DriverImage(subject, backing);
    await image.create(size);
    return { disk: await image.open(false), reopen: (readOnly) => image.open(readOnly), check: () => image.check() };
  };
}

const BACKING_NAME = 'backing';
/** When the files of these tests were changed last, seconds. */
const MODIFIED = 1_000_000_000;

class DriverImage<O extends OptionSchema, C extends OptionSchema> {
  readonly #subject: DriverUnderTest<O, C>;
  readonly #backing: OpenBacking | undefined;
  readonly #references = new Map<string, MemoryStore>();
  #file = new MemoryStore({ name: 'image' });

  constructor(subject: DriverUnderTest<O, C>, backing: OpenBacking | undefined) {
    this.#subject = subject;
    this.#backing = backing;
  }

  async create(size: number): Promise<void> {
    const { driver, createOptions } = this.#subject;
    const backing = this.#backing === undefined ? undefined : BACKING_NAME;
    const options = resolveOptions(driver.createOptions, createOptions?.(backing) ?? {});
    const context = {
      file: this.#file,
      name: 'image',
      createReference: (reference: Reference): Promise<MemoryStore> => {
        const store = new MemoryStore({ name: reference.name });
        this.#references.set(reference.name, store);
        return Promise.resolve(store);
      },
      secret: secretsOf(undefined),
      referenceStatus: (reference: Reference) => this.#referenceStatus(reference),
    };
    await driver.create?.(context, size, options);
    await this.#file.close();
    for (const store of this.#references.values()) await store.close();
  }

  async open(readOnly: boolean): Promise<BlockNode> {
    return mappedNode(await this.#openFormat(readOnly, false), { name: 'image' });
  }

  async check(): Promise<Pick<CheckResult, 'checkErrors' | 'corruptions' | 'leaks'>> {
    const format = await this.#openFormat(true, true);
    try {
      return (await format.check?.check({})) ?? { checkErrors: 0, corruptions: 0, leaks: 0 };
    } finally {
      await format.close();
      for (const child of format.children) await child.node.close();
    }
  }

  #openFormat(readOnly: boolean, forCheck: boolean): Promise<FormatNode> {
    const { driver, codecs, openOptions, cacheBytes = 64 * 1024 } = this.#subject;
    this.#file = this.#file.reopen({ readOnly });
    const context: OpenContext = {
      file: this.#wrapped(this.#file),
      name: 'image',
      readOnly,
      forCheck,
      unsafe: false,
      rules: ALL_RULES,
      cache: new CacheBudget(cacheBytes),
      codecs,
      openReference: (reference) => Promise.resolve(this.#openReference(reference)),
      secret: secretsOf(undefined),
      referenceStatus: (reference) => this.#referenceStatus(reference),
      report: () => undefined,
    };
    return driver.open(context, resolveOptions(driver.openOptions, openOptions ?? {}));
  }

  #openReference(reference: Reference): BlockNode {
    if (reference.role === 'backing' && this.#backing !== undefined) return this.#backing();
    const store = this.#references.get(reference.name);
    if (store === undefined) throw new Error(`the image refers to "${reference.name}", which was not made`);
    const opened = store.reopen({ readOnly: reference.readOnly });
    this.#references.set(reference.name, opened);
    return this.#wrapped(opened);
  }

  async #referenceStatus(reference: Reference): Promise<ReferenceStatus | undefined> {
    const opened = reference.role === 'backing' ? this.#backing?.() : undefined;
    const store = opened ?? this.#references.get(reference.name);
    if (store === undefined) return undefined;
    const { size } = store;
    if (opened !== undefined) await opened.close();
    const identity = `memory:${reference.name}`;
    return { resolved: reference.name, absolute: `/${reference.name}`, size, modifiedSeconds: MODIFIED, identity };
  }

  #wrapped(file: BlockNode): BlockNode {
    return this.#subject.wrap?.(file) ?? file;
  }
}
