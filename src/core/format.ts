/** The mapping plane: a format answers "where do these guest bytes live?", and the engine moves them.
 *  Owns the contracts a format room implements: FormatNode, WritePlan, facets, FormatDriver. No I/O.
 *  Invariant of every writer: prepare (reserve) → data and copy-on-write edges → commit (publish). Nothing is published
 *  before its data is written; nothing that was published before is overwritten by an allocation. */
import type { MaybePromise, Pending } from '../base/async.ts';
import type { JobOptions } from '../base/job.ts';
import type { OptionSchema, OptionsOf } from '../base/options.ts';
import type { Codecs } from '../codec/codecs.ts';
import type { AuditFacet } from './audit.ts';
import type { ForwardWriting } from './forward.ts';
import type { BlockNode, Child } from './node.ts';
import type { FileUse } from './permissions.ts';
import type { RecoveryFacet, RecoveryRequest } from './recovery.ts';
import type { RunList } from './run.ts';
import type { SafetyRules } from './safety.ts';
import type { ByteStore, IoOptions, Preallocation, ZeroOptions } from './store.ts';
import type { CacheBudget } from './table-cache.ts';

/** Where one stretch of a guest write goes: a single host run, with at most one edge on each side.
 *  An edge is a guest range that the engine fills by reading this node under its old mapping (backing file, own cluster
 *  shared with a snapshot, compressed cluster, zero flag), and that lies directly before or after the run on the host. */
export interface WritePlan {
  /** First guest byte written; equals the offset that was asked. */
  readonly guestOffset: number;
  /** Guest bytes written, at most what was asked. */
  readonly length: number;
  readonly child: number;
  /** Where `guestOffset` goes. */
  readonly hostOffset: number;
  /** Bytes before `guestOffset` / after the end that must be filled from the old mapping. */
  readonly headLength: number;
  readonly tailLength: number;
}

/** Encryption, applied by the engine to `data` runs. Offsets and lengths are multiples of `sector`. */
export interface DataTransform {
  readonly sector: number;
  /** Which offset feeds the tweak. */
  readonly tweak: 'guest' | 'host';
  /** Never changes `from`: the guest's buffer is the guest's. Neither buffer is touched any more when the Pending has ended. */
  encrypt(from: Uint8Array, into: Uint8Array, at: number): Pending;
  decrypt(bytes: Uint8Array, at: number): Pending;
}

/** An opened image's mapping. All offsets and lengths in bytes. */
export interface FormatNode {
  readonly format: string;
  readonly virtualSize: number;
  /** Allocation unit: cluster, block, grain. */
  readonly unit: number;
  /** Granularity of zero marks: the subcluster where there are some, else `unit`. */
  readonly zeroUnit: number;
  /** Granularity of `unmap` for discards, where that is less than `unit`. */
  readonly discardUnit?: number;
  /** What `extents` asks the file below about data runs: nothing; whether they read as zero (preallocated metadata);
   *  their status, which then stands for ours (raw); or all that it has to say, as if it were asked itself (filters). */
  readonly recurse: 'none' | 'zero' | 'status' | 'through';
  readonly readOnly: boolean;
  readonly children: readonly Child[];
  /** Maps from `offset` on into `into` (already reset); covers at least one unit; no I/O beyond the first missing table. */
  map(offset: number, length: number, into: RunList): Pending;
  /** Fills `into` with the guest bytes of runs `first … first+count-1`, all encoded and consecutive; `into` begins at the first run's
   *  guest offset. Works by the runs' descriptors alone: a second look-up would find another mapping. */
  decode?(runs: RunList, first: number, count: number, into: Uint8Array, options?: IoOptions): Pending;
  /** Reserves host space for a write at `offset`, maybe less than asked, never past one table slice; publishes nothing.
   *  Called under the range lock; maps again itself. */
  prepareWrite?(offset: number, length: number): MaybePromise<WritePlan>;
  /** Publishes a plan whose data and edges are written. */
  commitWrite?(plan: WritePlan): Pending;
  /** Gives a plan's reservation back. Never after a failed commit. If it fails, the space leaks. */
  abortWrite?(plan: WritePlan): Pending;
  /** Encodes and stores whole units (the last of the disk may be short). Calls are allocated in the order they are made. */
  writeCompressed?(offset: number, from: Uint8Array, options?: IoOptions): Promise<void>;
  /** Marks whole zeroUnits as reading zero. `unsupported`: the engine writes zeros instead. Called under the range lock. */
  mapZeroes?(offset: number, length: number, options: ZeroOptions): MaybePromise<'done' | 'unsupported'>;
  /** Drops whole units: they read as zero, or show the backing file again. Called under the range lock. */
  unmap?(offset: number, length: number, reveal: 'zero' | 'backing'): MaybePromise<'done' | 'unsupported'>;
  /** Overlap check before every data write, in place ones included; throws CORRUPT. */
  checkDataWrite?(child: number, hostOffset: number, length: number): Pending;
  readonly transform?: DataTransform | undefined;
  /** Called once, before the first request, with what the engine lends. */
  attach?(engine: EngineServices): void;
  resize?(virtualSize: number, preallocation: Preallocation | 'metadata'): Promise<void>;
  /** Records another backing file (`undefined`: none), or what the same one is like now. That guests see the same afterwards is the caller's
   *  promise. Called alone, inside `exclusive`. Durable when it ends. */
  changeBacking?(backing: BackingRecord | undefined): Promise<void>;
  /** Changes what the image was created with. `options` holds what was asked, by the TypeScript names of the driver's `amendOptions`, valid and
   *  without defaults. Called alone, inside `exclusive`. Durable when it ends; interrupted, the image holds the same as before. */
  amend?(options: Readonly<Record<string, unknown>>, run: AmendRun): Promise<void>;
  /** Drops all that this layer holds, so that it shows its backing file again. Called alone, inside `exclusive`. Durable when it ends. Where it
   *  is not there, at present or at all, the engine drops unit by unit. */
  readonly makeEmpty?: (() => Promise<void>) | undefined;
  /** Makes the data file an image of its own, for formats that keep data apart from metadata; never copies guest data.
   *  @returns the file that stands alone now. @throws INVALID_ARGUMENT when this layer does not hold everything (details `{ missing }`, bytes). */
  detach?(): Promise<Standalone>;
  /** Writes all tables back in their order and makes everything durable, data included. */
  flush(): Pending;
  /** Flushes what the format holds and leaves the children open. */
  close(): Promise<void>;
  /** Gives up all that is held in memory, changes that are not written included, and writes nothing. Called alone, inside `exclusive`; nothing
   *  follows. */
  forget?(): Promise<void>;
  info(): MaybePromise<FormatInfo>;
  /** How often each part of the file is referred to, for formats that count it: runs of equal counts, in order, to the end of the file and of
   *  what is counted. */
  references?(): AsyncIterable<ReferenceRun>;
  readonly check?: CheckFacet;
  readonly snapshots?: SnapshotFacet | undefined;
  readonly vmState?: VmStateFacet | undefined;
  readonly bitmaps?: BitmapFacet | undefined;
  /** Of a node that {@link FormatDriver.recover} made. */
  readonly recovery?: RecoveryFacet | undefined;
}

export interface AmendRun extends JobOptions {
  /** Do what cannot be undone: erase the last key. Default false. */
  readonly force?: boolean | undefined;
}

/** Told of every guest change before it is made, failed ones included: dirty bitmaps. Bytes. */
export type WriteObserver = (offset: number, length: number) => void;

/** What the engine lends a format. */
export interface EngineServices {
  readonly observers: Set<WriteObserver>;
  /** Which requests run: deferred frees ask it. */
  readonly epochs: EpochSource;
  /** Guest bytes under the present mapping, for rewrites inside the format. */
  readGuest(offset: number, into: Uint8Array): Pending;
  /** After a fatal finding: every later request fails with `error`. */
  condemn(error: Error): void;
  /** Runs `body` alone: new requests wait, running ones have ended. Never from inside a request. */
  exclusive<T>(body: () => Promise<T>): Promise<T>;
}

/** Answers "have all requests that had begun at that moment ended?". */
export interface EpochSource {
  /** A stamp of now. */
  now(): number;
  /** Whether every request that had begun at or before `stamp` has ended. */
  ended(stamp: number): boolean;
}

/** Bytes of an image file that are referred to equally often. */
export interface ReferenceRun {
  /** In the file, bytes. */
  readonly offset: number;
  readonly length: number;
  /** 0: free. Infinite where no number holds it. */
  readonly refcount: number;
}

export interface FormatInfo {
  readonly clusterSize?: number;
  readonly encrypted?: boolean;
  /** Not closed cleanly; `undefined` where the format cannot tell. */
  readonly dirty?: boolean;
  readonly backing?: { readonly name: string; readonly format?: string };
  readonly snapshots?: readonly SnapshotInfo[];
  /** Format-specific facts under QEMU's names (`lazy-refcounts`), shown in QEMU's order by the renderer. */
  readonly specific?: { readonly type: string; readonly data: Readonly<Record<string, unknown>> };
}

export interface SnapshotInfo {
  readonly id: string;
  readonly name: string;
  readonly vmStateSize: number;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly vmClockNanoseconds: bigint;
  readonly icount?: bigint;
  readonly diskSize?: number;
}

/** Names a snapshot. A text is an id or, where no snapshot has that id, a name; of an object, everything given must match.
 *  The first one that matches is meant: names need not be unique. */
export type SnapshotSelector = string | { readonly id?: string | undefined; readonly name?: string | undefined };

/** What a new snapshot is to record; its content is the disk as it is. */
export interface SnapshotRequest {
  /** May be empty, and need not be unique. */
  readonly name: string;
  /** Seconds since 1970, and nanoseconds of the second. */
  readonly dateSeconds: number;
  readonly dateNanoseconds?: number;
  /** Clock of the machine. Default 0. */
  readonly vmClockNanoseconds?: bigint;
  /** Bytes of the machine's state, which has been written before. With any, the state goes to the snapshot and is gone from the disk.
   *  Default 0. */
  readonly vmStateSize?: number;
  /** Instruction count of the machine; not recorded when not given. */
  readonly icount?: bigint | undefined;
}

/** Frozen contents inside the image. Changes are called alone, inside `exclusive`, and are durable when they end; at any cut the image
 *  is as before or as after. Errors leave everything as it was.
 *  @throws {@link BlockError} NOT_FOUND for a selector that matches nothing; UNSUPPORTED where this image cannot have snapshots; TOO_LARGE;
 *  CORRUPT; ABORTED. */
export interface SnapshotFacet {
  list(): readonly SnapshotInfo[];
  create(request: SnapshotRequest, options?: JobOptions): Promise<SnapshotInfo>;
  /** Makes the disk what it was, its size included; the snapshot stays. */
  apply(which: SnapshotSelector, options?: JobOptions): Promise<void>;
  delete(which: SnapshotSelector, options?: JobOptions): Promise<void>;
}

/** A part of a disk, bytes. */
export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

/** A persistent dirty bitmap: which parts of the disk were changed since it was made or cleared. */
export interface BitmapInfo {
  readonly name: string;
  /** Bytes of the disk for one bit: a power of two, 512 to 2 GiB. */
  readonly granularity: number;
  /** Records changes. */
  readonly enabled: boolean;
  /** Was not written back when the image was last open for writing: it cannot be used, only removed. */
  readonly inconsistent: boolean;
}

/** A bitmap that is to be made; it begins with nothing marked. */
export interface BitmapRequest {
  /** 1 to 1023 bytes of UTF-8. */
  readonly name: string;
  /** Default: the unit of the image, but 4 KiB at least and 64 KiB at most. */
  readonly granularity?: number | undefined;
  /** Whether it records changes. Default true. */
  readonly enabled?: boolean | undefined;
}

/** Records, kept in the image, of what guests change. While the image is open for writing the file says that they are not to be trusted;
 *  what is called here reaches the file, and is durable, when the image is closed. Changes are called alone, inside `exclusive`; errors leave
 *  everything as it was.
 *  @throws {@link BlockError} NOT_FOUND for a name that no bitmap has; INVALID_ARGUMENT for what cannot be recorded; UNSUPPORTED where
 *  this image cannot have bitmaps; TOO_LARGE; CORRUPT, also for the use of an inconsistent one. */
export interface BitmapFacet {
  /** Bitmaps can be made here; not where only other versions of the format have them. */
  readonly available: boolean;
  /** Oldest first. */
  list(): Promise<readonly BitmapInfo[]>;
  add(request: BitmapRequest): Promise<void>;
  remove(name: string): Promise<void>;
  /** Marks nothing any more. */
  clear(name: string): Promise<void>;
  /** Whether it records changes from now on. */
  setEnabled(name: string, enabled: boolean): Promise<void>;
  /** Marks what `ranges` touch as well; the disk they are of must have the size of this one. */
  merge(name: string, ranges: AsyncIterable<ByteRange>): Promise<void>;
  /** The dirty parts in order, none touching the next. Of a bitmap that records, those of one moment only where nobody writes. */
  dirty(name: string): AsyncIterable<ByteRange>;
}

/** Room for the state of a machine, mapped like the disk and behind its end. */
export interface VmStateFacet {
  /** Where it begins in the address space of the disk, bytes. */
  readonly offset: number;
  /** Bytes of state that can be mapped at present; reads behind them are zeros, or what the backing file has there. */
  readonly capacity: number;
  /** Makes room for `length` bytes. Called alone, inside `exclusive`.
   *  @throws {@link BlockError} TOO_LARGE. */
  reserve(length: number): Promise<void>;
}

export type CheckFix = 'none' | 'leaks' | 'all';

export interface CheckFinding {
  readonly kind: 'leak' | 'corruption' | 'error' | 'note';
  readonly reason: string;
  /** The line qemu-img prints for it. */
  readonly message: string;
  readonly details?: Readonly<Record<string, unknown>>;
}

export interface CheckOptions extends JobOptions {
  readonly fix?: CheckFix;
  readonly onFinding?: (finding: CheckFinding) => void;
}

/** Counters of one run; `leaks` and `corruptions` are those left, the `Fixed` ones those mended. */
export interface CheckResult {
  readonly checkErrors: number;
  readonly corruptions: number;
  readonly leaks: number;
  readonly corruptionsFixed: number;
  readonly leaksFixed: number;
  readonly imageEndOffset?: number;
  readonly totalClusters?: number;
  readonly allocatedClusters?: number;
  readonly fragmentedClusters?: number;
  readonly compressedClusters?: number;
}

export interface CheckFacet {
  check(options: CheckOptions): Promise<CheckResult>;
}

/** Things that happen to an image while it is open; never prints, always told. */
export type ImageEvent =
  | {
      readonly type: 'corrupted';
      readonly node: string;
      readonly message: string;
      readonly fatal: boolean;
      readonly offset?: number;
      readonly size?: number;
    }
  | { readonly type: 'warning'; readonly node: string; readonly reason: string; readonly message: string }
  | { readonly type: 'repaired'; readonly node: string; readonly message: string };

/** A file that an image names. */
export interface Reference {
  readonly role: 'backing' | 'data' | 'extent' | 'header';
  /** As recorded in the image. */
  readonly name: string;
  /** The image does not record it: the caller named it, in an option. No policy is asked then, and the name is relative to the working directory. */
  readonly chosen?: boolean | undefined;
  readonly format?: string | undefined;
  readonly readOnly: boolean;
}

/** What stands at a reference, learnt without opening it. */
export interface ReferenceStatus {
  /** The name it means. */
  readonly resolved: string;
  /** The same with its directory made canonical and absolute, the last component untouched; `resolved` where the protocol has no directories. */
  readonly absolute: string;
  /** Bytes of the file (not of a disk inside it); `undefined` where only opening tells. */
  readonly size: number | undefined;
  /** Seconds since 1970. */
  readonly modifiedSeconds: number | undefined;
  readonly identity: string | undefined;
}

/** A backing file as an image records it. */
export interface BackingRecord {
  readonly name: string;
  readonly format?: string | undefined;
}

export interface Standalone {
  readonly name: string;
  readonly format: string;
}

/** What becomes of discards. `unmap`: the space goes back to whoever holds the file; `ignore`: nothing, a discard is a hint; not given: the layer
 *  drops what it maps there, and uses the space for itself. */
export type DiscardMode = 'unmap' | 'ignore';

/** Passwords and keys, by the ids that options refer to (`encrypt.key-secret`).
 *  @returns a copy, which the caller wipes
 *  @throws {@link BlockError} NOT_FOUND, reason `secret.missing`, details `{ id }`. */
export type Secrets = (id: string) => Uint8Array;

export interface OpenContext {
  readonly file: BlockNode;
  /** What messages call the image. */
  readonly name: string;
  readonly readOnly: boolean;
  /** Opened to be checked or repaired: damage that `check` can report is no reason to refuse. */
  readonly forCheck: boolean;
  /** Only facts are asked for (info): what guest data would need, a key for one, may be missing. Reads of guest data then throw. */
  readonly metadataOnly?: boolean;
  /** Nothing need be durable before the last flush: no order of writes is kept (convert's default target). */
  readonly unsafe: boolean;
  /** What the caller wants of discards: `unmap` gives space back to the file below, where the format's own options do not say otherwise. */
  readonly discard?: DiscardMode | undefined;
  /** For the tests that prove each rule by its absence. */
  readonly rules?: SafetyRules;
  /** Open the content of this snapshot instead of the disk. Then `readOnly` is true and `forCheck` is not; only for formats whose
   *  capabilities say `snapshots`. */
  readonly snapshot?: SnapshotSelector | undefined;
  /** Which backing file is asked for, see {@link wantedBacking}. Default `recorded`. */
  readonly backing?: 'recorded' | 'chosen' | 'none' | undefined;
  readonly cache: CacheBudget;
  /** Compression, on worker threads for bulk. */
  readonly codecs: Codecs;
  /** The only way to another file; policy, cycles and depth are decided there. */
  openReference(reference: Reference): Promise<BlockNode>;
  /** Looks at a file without opening it. `undefined`: nothing is there, or the caller's policy does not let us look. */
  referenceStatus(reference: Reference): Promise<ReferenceStatus | undefined>;
  /** As {@link Secrets}. */
  secret(id: string): Uint8Array;
  report(event: ImageEvent): void;
  readonly signal?: AbortSignal | undefined;
}

/** The backing file to ask for: the recorded one, one that the caller has chosen even where none is recorded, or none whatever is recorded. */
export function wantedBacking(
  { backing = 'recorded' }: Pick<OpenContext, 'backing'>,
  recorded: Reference | undefined,
): Reference | undefined {
  if (backing === 'none') return undefined;
  return recorded ?? (backing === 'chosen' ? { role: 'backing', name: '', readOnly: true } : undefined);
}

export interface CreateContext {
  /** The new file, empty and writable. */
  readonly file: ByteStore;
  readonly name: string;
  /** Creates a file that the new image names. @param existing what becomes of one that is there: `replace` empties it, `keep` opens it. */
  createReference(reference: Reference, existing: 'replace' | 'keep'): Promise<ByteStore>;
  /** As that of {@link OpenContext}. */
  referenceStatus(reference: Reference): Promise<ReferenceStatus | undefined>;
  /** As {@link Secrets}. */
  secret(id: string): Uint8Array;
  /** In place of the runtime's: for images that must be the same each time. What is encrypted by a key of that kind is no secret. */
  readonly chance?: Chance | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Where keys and salts of new images come from, and the time that tells how fast the machine is. */
export interface Chance {
  fillRandom(into: Uint8Array): void;
  /** Milliseconds since some moment; never goes back. */
  now(): number;
}

export interface ProbeInput {
  /** The first bytes, at most 2 KiB, fewer when the file is shorter. */
  readonly head: Uint8Array;
  readonly fileSize: number;
  readonly name: string;
}

export interface FormatCapabilities {
  readonly create: boolean;
  readonly write: boolean;
  readonly backing: boolean;
  readonly compress: boolean;
  readonly check: boolean;
  /** A new image without backing file reads as zero everywhere. */
  readonly zeroInit: boolean;
  /** Images hold snapshots of themselves, which can be opened. Default false. */
  readonly snapshots?: boolean;
  /** Images hold dirty bitmaps. Default false. */
  readonly bitmaps?: boolean;
  /** What it lets others do with its file. Default `exclusive`. */
  readonly fileUse?: FileUse;
  /** The disk of a new image can be made larger and smaller while it is being written. Default false. */
  readonly resize?: boolean;
}

/** Space an image would need, in bytes of its file. */
export interface Measurement {
  readonly required: number;
  readonly fullyAllocated: number;
  /** Space of persistent bitmaps, where source and target know them. */
  readonly bitmaps?: number;
}

/** A format as a value: callers pass the ones they want. */
export interface FormatDriver<
  N extends string = string,
  O extends OptionSchema = OptionSchema,
  C extends OptionSchema = OptionSchema,
> {
  readonly kind: 'format';
  readonly name: N;
  readonly summary: string;
  readonly extensions: readonly string[];
  readonly capabilities: FormatCapabilities;
  readonly openOptions: O;
  readonly createOptions: C;
  /** Files besides the image's own and the backing file, by the names that options call them, and what they are asked for as. */
  readonly fileChildren?: Readonly<Record<string, Reference['role']>> | undefined;
  /** What {@link FormatNode.amend} takes; none where images of the format cannot be amended. */
  readonly amendOptions?: OptionSchema | undefined;
  /** What {@link recover} can be told about an image that tells it no more. */
  readonly recoverOptions?: OptionSchema | undefined;
  /** 0..100, pure. */
  probe(input: ProbeInput): number;
  open(context: OpenContext, options: OptionsOf<O>): Promise<FormatNode>;
  /** A read-only node over what is left of a damaged image, with its `recovery` facet. Reads the whole file; writes nothing.
   *  Memory is bounded by the size of the file's metadata, whatever it claims. */
  recover?(context: OpenContext, request: RecoveryRequest): Promise<FormatNode>;
  /** Creates an image of `virtualSize` bytes into `context.file`. */
  create?(context: CreateContext, virtualSize: number, options: OptionsOf<C>): Promise<void>;
  /** How an image is written into a pipe; not there where that takes another order than from the first byte to the last. */
  readonly forward?: ForwardWriting<OptionsOf<C>> | undefined;
  measure?(virtualSize: number, options: OptionsOf<C>, source?: BlockNode, signal?: AbortSignal): Promise<Measurement>;
  /** What strangers may have put into an image, told without opening what it names, whether it can be opened or not. */
  readonly auditor?: AuditFacet | undefined;
}

export function defineFormat<const N extends string, const O extends OptionSchema, const C extends OptionSchema>(
  driver: Omit<FormatDriver<N, O, C>, 'kind'>,
): FormatDriver<N, O, C> {
  return { kind: 'format', ...driver };
}
