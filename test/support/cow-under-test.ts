/** cow as the model and crash harness wants it, and as the other tests of the room do: images in memory, made by our own create, in every
 *  layout. UML's layouts always have a backing file: where a test wants none, it is one of zeros. */
import { type OptionsInput, resolveOptions } from '../../src/base/options.ts';
import { alignUp } from '../../src/bytes/align.ts';
import { createCodecs } from '../../src/codec/create.ts';
import type {
  CheckFinding,
  CheckOptions,
  CheckResult,
  ImageEvent,
  OpenContext,
  ReferenceStatus,
} from '../../src/core/format.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { ALL_RULES, type SafetyRules } from '../../src/core/safety.ts';
import { secretsOf } from '../../src/core/secrets.ts';
import { CacheBudget } from '../../src/core/table-cache.ts';
import { cow } from '../../src/formats/cow/driver.ts';
import { type CowGeometry, type CowLayoutId, geometryOf, layoutOf } from '../../src/formats/cow/layouts.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import type { FormatUnderTest, OpenedUnderTest, OpenUnderTest } from '../../src/testing/model.ts';
import { inverted, type Segment, SegmentStore } from './segment-store.ts';

export const codecs = createCodecs({ workers: 0 });

export type CreatableLayout = Exclude<CowLayoutId, 'hybrid-v3-over-v2-32'>;

/** What the header of an image names that is made here, and when that was changed, seconds since 1970. */
export const BASE_NAME = '/images/base.img';
export const BASE_MTIME = 1_000_000_000;

export function baseStatus(status: Partial<ReferenceStatus> = {}): ReferenceStatus {
  return {
    resolved: BASE_NAME,
    absolute: BASE_NAME,
    size: undefined,
    modifiedSeconds: BASE_MTIME,
    identity: 'base',
    ...status,
  };
}

/** Where the areas of an image made here are. */
export function cowGeometry(layout: CowLayoutId, size: number): CowGeometry {
  return geometryOf(layoutOf(layout), { size, sectorSize: 512, alignment: 4096 });
}

export interface CreateCow {
  readonly layout?: CreatableLayout;
  /** QEMU's layouts can be without. True by default. */
  readonly backing?: boolean;
  readonly backingName?: string;
  readonly status?: ReferenceStatus | undefined;
  readonly pageSize?: number;
}

/** A new image. */
export async function newCow(size: number, options: CreateCow = {}): Promise<MemoryStore> {
  const { layout = 'v3', backing = true, backingName = BASE_NAME, pageSize = 512 } = options;
  const file = new MemoryStore({ name: 'disk', pageSize });
  const status = 'status' in options ? options.status : baseStatus({ absolute: backingName });
  await cow.create?.(
    {
      file,
      name: 'disk',
      createReference: () => Promise.reject(new Error('no references here')),
      secret: secretsOf(undefined),
      referenceStatus: () => Promise.resolve(status),
    },
    size,
    resolveOptions(cow.createOptions, { layout, ...(backing ? { backingFile: backingName } : {}) }),
  );
  return file;
}

export interface OpenCow {
  readonly readOnly?: boolean;
  readonly forCheck?: boolean;
  readonly metadataOnly?: boolean;
  readonly unsafe?: boolean;
  readonly backing?: BlockNode | undefined;
  /** What is known of the backing file; nothing by default. */
  readonly status?: ReferenceStatus | undefined | (() => ReferenceStatus | undefined);
  readonly options?: OptionsInput<typeof cow.openOptions>;
  readonly cache?: CacheBudget;
  readonly rules?: SafetyRules;
}

export interface OpenedCow {
  readonly file: BlockNode;
  readonly node: MappedNode;
  readonly events: readonly ImageEvent[];
}

export async function openCow(file: BlockNode, options: OpenCow = {}): Promise<OpenedCow> {
  const events: ImageEvent[] = [];
  const rules = options.rules ?? ALL_RULES;
  const context: OpenContext = {
    file,
    name: 'disk',
    readOnly: options.readOnly ?? false,
    forCheck: options.forCheck ?? false,
    metadataOnly: options.metadataOnly ?? false,
    unsafe: options.unsafe ?? false,
    rules,
    cache: options.cache ?? new CacheBudget(1 << 20),
    codecs,
    secret: secretsOf(undefined),
    referenceStatus: () => Promise.resolve(typeof options.status === 'function' ? options.status() : options.status),
    openReference: () => Promise.resolve(options.backing ?? zeros()),
    report: (event) => void events.push(event),
  };
  const format = await cow.open(context, resolveOptions(cow.openOptions, options.options ?? {}));
  return { file, node: mappedNode(format, { name: 'disk', rules }), events };
}

/** A backing file without end that is all zeros. */
export function zeros(size = 2 ** 50): MemoryStore {
  return new MemoryStore({ name: 'zeros', size, readOnly: true, pageSize: 2 ** 30 });
}

/** A file's content in a store that can be closed by itself. */
export function storeOf(bytes: Uint8Array, options: { readonly readOnly?: boolean } = {}): MemoryStore {
  return MemoryStore.from(bytes, { name: 'disk', pageSize: 512, ...options });
}

export async function readAll(node: BlockNode, offset = 0, length = node.size - offset): Promise<Uint8Array> {
  // Not zero at first: a byte that is not filled shows.
  const bytes = new Uint8Array(length).fill(0x5a);
  await node.read(offset, bytes);
  return bytes;
}

/** Bytes that differ from their neighbours and from one seed to another, none of them zero. */
export function pattern(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = ((i * 31 + seed * 7 + Math.floor(i / 256)) % 255) | 1;
  return bytes;
}

export interface CheckedCow {
  readonly result: CheckResult;
  readonly findings: readonly CheckFinding[];
}

export async function checkCow(file: BlockNode, options: OpenCow & CheckOptions = {}): Promise<CheckedCow> {
  const { fix, ...opening } = options;
  const { node } = await openCow(file, { readOnly: fix === undefined, ...opening, forCheck: true });
  const findings: CheckFinding[] = [];
  const result = await node.format.check?.check({
    ...(fix === undefined ? {} : { fix }),
    onFinding: (finding) => findings.push(finding),
  });
  await node.close();
  if (result === undefined) throw new Error('cow has no check');
  return { result, findings };
}

// ── the harness ──────────────────────────────────────────────────────────────────────────────────

export interface CowVariant {
  readonly layout?: CreatableLayout;
  /** `share` of the harness merges the layer into its backing file, which is one of the files then, empties it and records the new time. */
  readonly commits?: boolean;
  /** The guest sees nothing but the neighbourhood of the borders of the bitmap's first tables, on a disk that has all of them. */
  readonly borders?: boolean;
  /** Told of every file that is opened (with `borders`). */
  opened?(file: SegmentStore): void;
}

export function cowUnderTest(variant: CowVariant = {}): FormatUnderTest {
  const { layout = 'v3', commits = false } = variant;
  const name = `cow ${JSON.stringify({ layout, ...variant })}`;
  if (variant.borders === true) return cowAtBorders(name, layout, variant);
  return {
    name,
    unit: 512,
    create: async (size, { hasBacking }) => {
      const needed = hasBacking || commits || !layoutOf(layout).qemu;
      const file = await newCow(size, { layout, backing: needed });
      return commits ? [file.bytes(), new Uint8Array(size)] : [file.bytes()];
    },
    open: async ([file, base], options) =>
      commits
        ? openCommitting(file as BlockNode, base as BlockNode, options)
        : { node: (await openCow(file as BlockNode, options)).node },
    check: async ([image]) => corruptionsOf(storeOf(image as Uint8Array, { readOnly: true })),
  };
}

async function corruptionsOf(file: BlockNode): Promise<{ corruptions: readonly string[]; leaks: number }> {
  const { result, findings } = await checkCow(file);
  const { corruptions, checkErrors, leaks } = result;
  return { corruptions: corruptions + checkErrors > 0 ? findings.map(({ message }) => message) : [], leaks };
}

/** With every commit the recorded time goes on by a second: it tells how many there were. */
async function openCommitting(file: BlockNode, base: BlockNode, options: OpenUnderTest): Promise<OpenedUnderTest> {
  let mtime: number | undefined;
  const status = (): ReferenceStatus | undefined =>
    mtime === undefined ? undefined : baseStatus({ modifiedSeconds: mtime });
  const { node } = await openCow(file, { ...options, backing: base, status });
  const commits = async (): Promise<number> => {
    const data = (await node.format.info()).specific?.data;
    return Date.parse(String(data?.['backing-mtime-recorded'])) / 1000 - BASE_MTIME;
  };
  return {
    node,
    share: () =>
      node.exclusive(async () => {
        const merged = new Uint8Array(node.size);
        await node.readGuest(0, merged);
        await base.write(0, merged);
        await base.flush();
        await node.format.makeEmpty?.();
        mtime = BASE_MTIME + (await commits()) + 1;
        await node.format.changeBacking?.({ name: BASE_NAME });
        mtime = undefined;
      }),
    // Nothing is frozen but the fact that there was a commit.
    readShared: async () => ((await commits()) > 0 ? new Uint8Array(0) : undefined),
  };
}

// ── at the borders of tables ─────────────────────────────────────────────────────────────────────

/** Bytes of bitmap in one table of the presence map. */
const TABLE = 64 * 1024;

/** The guest's view of a disk that reaches over `count` borders of tables: the same number of cells on both sides of each. */
export function borderSegments(
  layout: CowLayoutId,
  size: number,
  count: number,
): { segments: Segment[]; size: number } {
  const { bitmapOffset } = cowGeometry(layout, 512);
  const length = size / count;
  const segments: Segment[] = [];
  for (let i = 0; i < count; i++) {
    const border = ((i + 1) * TABLE - bitmapOffset) * 8 * 512;
    segments.push({ at: i * length, inner: border - length / 2, length });
  }
  const last = segments[count - 1] as Segment;
  // No layout leaves the last sectors of such a size without bits.
  return { segments, size: alignUp(last.inner + last.length, 64 * 512) };
}

/** More than the four tables that every cache may hold. */
const BORDERS = 8;

function cowAtBorders(name: string, layout: CreatableLayout, variant: CowVariant): FormatUnderTest {
  /** The image's file: header and bitmap, then the guest's places one after the other. */
  const views = (
    guestSize: number,
  ): { disk: Segment[]; diskSize: number; file: Segment[]; fileSize: number; dense: number } => {
    const { segments: disk, size: diskSize } = borderSegments(layout, guestSize, BORDERS);
    const { dataOffset } = cowGeometry(layout, diskSize);
    const file: Segment[] = [{ at: 0, inner: 0, length: dataOffset }];
    for (const { at, inner, length } of disk) {
      file.push({ at: dataOffset + inner, inner: dataOffset + at, length });
    }
    return { disk, diskSize, file, fileSize: dataOffset + diskSize, dense: dataOffset + guestSize };
  };
  let guestSize = 0;
  const fileOf = (dense: BlockNode): SegmentStore => {
    const { file, fileSize } = views(guestSize);
    return new SegmentStore(dense, file, fileSize);
  };
  return {
    name,
    unit: 512,
    create: async (size, { hasBacking }) => {
      guestSize = size;
      const { diskSize, dense, file } = views(size);
      const whole = await newCow(diskSize, { layout, backing: hasBacking || !layoutOf(layout).qemu, pageSize: 65536 });
      const bytes = new Uint8Array(dense);
      await whole.read(0, bytes.subarray(0, file[0]?.length));
      return [bytes];
    },
    open: async ([dense], options) => {
      const { disk, diskSize } = views(guestSize);
      const file = fileOf(dense as BlockNode);
      variant.opened?.(file);
      const backing = options.backing && new SegmentStore(options.backing, inverted(disk), diskSize);
      const { node } = await openCow(file, { ...options, backing });
      return { node: new SegmentStore(node, disk, guestSize) };
    },
    check: ([dense]) => corruptionsOf(fileOf(storeOf(dense as Uint8Array, { readOnly: true }))),
  };
}
