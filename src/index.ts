/** The isomorphic face: everything that needs no particular runtime. Formats and protocols are passed in by the caller; the Node face
 *  has them preset. Nothing here does anything when it is imported. */

export type { MaybePromise, Pending } from './base/async.ts';
export { BlockError, type BlockErrorOptions, type ErrorCode, type ErrorDetails, isBlockError } from './base/errors.ts';
export type { JobOptions, Progress } from './base/job.ts';
export {
  bool,
  choice,
  defineOptions,
  formatOptionHelp,
  int,
  type OptionDef,
  type OptionSchema,
  type OptionsInput,
  type OptionsOf,
  parseOptions,
  resolveOptions,
  size,
  splitOptionString,
  text,
} from './base/options.ts';
export { formatSize, GiB, KiB, MiB, parseSize, TiB } from './base/sizes.ts';
export type { Codecs } from './codec/codecs.ts';
export { type CodecsOptions, createCodecs } from './codec/create.ts';
export {
  AUDIT_SEVERITIES,
  AuditBook,
  type AuditContext,
  type AuditFacet,
  type AuditFinding,
  type AuditPlace,
  type AuditRule,
  type AuditSeverity,
} from './core/audit.ts';
export { DirtyBitmap, isBitmapGranularity } from './core/dirty-bitmap.ts';
export { EXTENT, type Extent, ExtentList } from './core/extent.ts';
export {
  defineFilter,
  type FilterChild,
  type FilterContext,
  type FilterDriver,
  type GraphObject,
  type OptionGroups,
} from './core/filter.ts';
export { FlushGate } from './core/flush-gate.ts';
export {
  type AmendRun,
  type BackingRecord,
  type BitmapFacet,
  type BitmapInfo,
  type BitmapRequest,
  type ByteRange,
  type CheckFinding,
  type CheckFix,
  type CheckOptions,
  type CheckResult,
  type CreateContext,
  type DiscardMode,
  defineFormat,
  type FormatCapabilities,
  type FormatDriver,
  type FormatInfo,
  type FormatNode,
  type ImageEvent,
  type Measurement,
  type OpenContext,
  type ProbeInput,
  type Reference,
  type ReferenceRun,
  type ReferenceStatus,
  type SnapshotFacet,
  type SnapshotInfo,
  type SnapshotRequest,
  type SnapshotSelector,
  type Standalone,
  type VmStateFacet,
  type WriteObserver,
  type WritePlan,
} from './core/format.ts';
export {
  type ForwardContext,
  type ForwardData,
  type ForwardImage,
  type ForwardWriting,
  UnitMap,
  type UnitState,
} from './core/forward.ts';
export { DeferredFrees, type Drop, type Durability } from './core/in-flight.ts';
export { type EmptyOptions, MappedNode, type MappedNodeOptions, mappedNode } from './core/mapped-node.ts';
export { type BlockNode, backingChain, type Child, type ChildRole } from './core/node.ts';
export type {
  CreateFileOptions,
  FileStatus,
  OpenFileOptions,
  ProtocolDriver,
  ProtocolGraph,
} from './core/protocol.ts';
export type {
  RecoveredContent,
  RecoveredRange,
  RecoveryFacet,
  RecoveryRequest,
  RecoveryState,
} from './core/recovery.ts';
export { type Run, type RunKind, RunList } from './core/run.ts';
export {
  BaseStore,
  type ByteStore,
  DEFAULT_LIMITS,
  type IoOptions,
  type Preallocation,
  type StoreLimits,
  type StoreStatus,
  type StoreSupports,
  type TruncateOptions,
  type WriteOptions,
  type ZeroOptions,
} from './core/store.ts';
export { CacheBudget, type Table, TableCache, type TableCacheOptions, type TableLease } from './core/table-cache.ts';
export { ThrottleGroup } from './filters/throttle-group.ts';
export type { ThrottleLimits } from './filters/throttle-limits.ts';
export {
  type BackingChoice,
  type CreateImageOptions,
  type CreatePlan,
  createImage,
  planCreate,
} from './image/create.ts';
export { type GraphOptions, type GraphValue, graphName } from './image/graph.ts';
export {
  type ExtentsOptions,
  Image,
  type NewSnapshot,
  type ReadableOptions,
  type ResizeOptions,
  type WritableOptions,
} from './image/image.ts';
export {
  type ImageDrivers,
  type OpenImageOptions,
  type OpenOptionsInput,
  openImage,
  type RecoverChoice,
} from './image/open.ts';
export type { ReferencePolicy, ResolvedReference } from './image/references.ts';
export type { ReopenOptions } from './image/reopen.ts';
export type { ServedExport } from './server/export.ts';
export { type CloseServerOptions, NbdServer, type NbdServerOptions } from './server/server.ts';
export type { NbdSession, SessionEvent } from './server/session.ts';
export type { Transport } from './server/transport.ts';
export type { ForwardTarget } from './storage/forward-sink.ts';
export { MemoryStore, type MemoryStoreOptions } from './storage/memory.ts';
export { NullStore, type NullStoreOptions, nullAio, nullCo } from './storage/null-store.ts';
export { type AmendImageOptions, amendImage } from './tools/amend.ts';
export { type ApplyOptions, type ApplyResult, applyDelta } from './tools/apply.ts';
export { type AuditImageOptions, type AuditReport, auditImage, auditRules } from './tools/audit.ts';
export { type BenchOptions, benchImage } from './tools/bench.ts';
export { type BitmapAction, type BitmapOptions, changeBitmap, dirtyExtents, listBitmaps } from './tools/bitmap.ts';
export type { ByteSource } from './tools/byte-feed.ts';
export { type CheckImageOptions, type CheckReport, checkImage } from './tools/check.ts';
export { CHECKSUM_BLOCK, type Checksum, type ChecksumOptions, checksumImage } from './tools/checksum.ts';
export { type CommitOptions, type CommitResult, commitImage } from './tools/commit.ts';
export { type CompareOptions, type CompareResult, compareImages } from './tools/compare.ts';
export {
  type CacheMode,
  type ConvertInput,
  type ConvertOptions,
  type ConvertResult,
  type ConvertSource,
  type ConvertTarget,
  type ConvertWindow,
  convertImage,
} from './tools/convert.ts';
export type { StreamTarget } from './tools/convert-pipe.ts';
export type { ConvertStream, SpoolEvent, SpoolReason, TemporaryFile } from './tools/convert-stream.ts';
export { type DeltaOptions, type DeltaResult, writeDelta } from './tools/delta.ts';
export { type DetachOptions, type DetachResult, detachImage } from './tools/detach.ts';
export { type DiffOptions, type DiffSummary, diffImages } from './tools/diff.ts';
export type { DifferenceKind, DiffRange } from './tools/difference.ts';
export { type BackingInfo, type ChildInfo, chainInfo, type ImageInfo, imageInfo } from './tools/info.ts';
export { type MapOptions, mapImage, mapReferences } from './tools/map.ts';
export { type MeasureOptions, measureImage } from './tools/measure.ts';
export { type RebaseOptions, type RebaseResult, rebaseImage } from './tools/rebase.ts';
export { type RecoverImageOptions, type RecoverResult, type RecoverTarget, recoverImage } from './tools/recover.ts';
export { type ResizeImageOptions, resizeImage } from './tools/resize.ts';
export {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
  type SnapshotOptions,
} from './tools/snapshot.ts';
