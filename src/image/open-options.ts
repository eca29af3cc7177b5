/** What `openImage` takes. */
import type { Codecs } from '../codec/codecs.ts';
import type { FilterDriver, GraphObject } from '../core/filter.ts';
import type { DiscardMode, FormatDriver, ImageEvent, SnapshotSelector } from '../core/format.ts';
import type { LockingMode, ProtocolDriver } from '../core/protocol.ts';
import type { RecoveryRequest } from '../core/recovery.ts';
import type { SafetyRules } from '../core/safety.ts';
import type { SecretsInput } from '../core/secrets.ts';
import type { ReferencePolicy } from './references.ts';

/** Drivers and codecs that the library works with. The Node face has them preset. */
export interface ImageDrivers {
  /** In probe order: the first of equal scores wins. */
  readonly formats: readonly FormatDriver[];
  /** Formats that are looked for where none is named or recorded, in probe order; the others must be named. Default: `formats`. */
  readonly probed?: readonly FormatDriver[] | undefined;
  /** The first one opens names without a known prefix. */
  readonly protocols: readonly ProtocolDriver[];
  /** Compression, on worker threads for bulk; in this thread when not given. */
  readonly codecs?: Codecs | undefined;
  /** Passwords and keys by the ids that options of formats refer to, for every layer. */
  readonly secrets?: SecretsInput | undefined;
  /** Filters that graphs may have, or what loads them when a name asks for it. Only where a list is given, an empty one too, may a name describe a graph (`json:{…}`): a caller that takes
   *  names from others must know. */
  readonly filters?: readonly FilterDriver[] | (() => Promise<readonly FilterDriver[]>) | undefined;
  /** What nodes share, by the ids that their options refer to. */
  readonly objects?: ReadonlyMap<string, GraphObject> | undefined;
}

/** The drivers among other options. */
export function driversOf(options: ImageDrivers): ImageDrivers {
  const { formats, probed, protocols, filters, objects, codecs, secrets } = options;
  return { formats, probed, protocols, filters, objects, codecs, secrets };
}

/** Open options by their TypeScript names, or what gives them once the format is known. */
export type OpenOptionsInput =
  | Readonly<Record<string, unknown>>
  | ((driver: FormatDriver) => Readonly<Record<string, unknown>>);

export interface OpenImageOptions extends ImageDrivers {
  /** Format name (`qcow2`); probed when not given. */
  readonly format?: string | undefined;
  /** Default true. */
  readonly readOnly?: boolean | undefined;
  /** Open options of the format, by their TypeScript names; a function is told which format it turned out to be. */
  readonly options?: OpenOptionsInput | undefined;
  /** Open options of the layers below, that of the backing file first, as {@link options}. */
  readonly backingOptions?: readonly OpenOptionsInput[] | undefined;
  /** Default `deny`. */
  readonly references?: ReferencePolicy | undefined;
  /** `false`: backing files stay unopened whatever `references` says (`info`, `check`); a number: those below so many stay unopened.
   *  Default true. */
  readonly openBacking?: boolean | number | undefined;
  /** The backing file of this image, whatever the image records: its recorded name is usually from another machine. Not asked of
   *  `references`, because the caller names it. Relative to the working directory. */
  readonly backing?: { readonly name: string; readonly format: string } | undefined;
  /** The data file of this image, whatever the image records; on the same terms as `backing`. Where only facts are asked for, none is opened. */
  readonly dataFile?: { readonly name: string } | undefined;
  /** Which files a format may look at (size, time of change) without opening them. Default: as `references`. */
  readonly lookAt?: ReferencePolicy | undefined;
  /** Backing files without a recorded format are probed, as qemu-img does. Default false: what a guest wrote into a raw
   *  base could make it look like another format. */
  readonly probeBacking?: boolean | undefined;
  /** Layers at most, this one included. Default 256. */
  readonly maxDepth?: number | undefined;
  /** Bytes of tables kept in memory, over all layers. Default 32 MiB. */
  readonly cacheBytes?: number | undefined;
  /** No order of writes is kept and nothing is durable before the last flush. Default false. */
  readonly unsafe?: boolean | undefined;
  /** Opened to be checked or repaired: damage that `check` reports is no reason to refuse. Default false. */
  readonly forCheck?: boolean | undefined;
  /** Only facts are asked for (info): what guest data would need, a key for one, may be missing. Default false. */
  readonly metadataOnly?: boolean | undefined;
  /** Open what this snapshot holds instead of the disk; `readOnly` only. The layers below are those of the disk. */
  readonly snapshot?: SnapshotSelector | undefined;
  /** What becomes of discards: see {@link DiscardMode}. Default: the image drops what it maps there. */
  readonly discard?: DiscardMode | undefined;
  /** Open what is left of a damaged image, instead of the image; `readOnly` only. Where no format is named or recognised, the first one that can
   *  recover is tried. */
  readonly recover?: RecoverChoice | undefined;
  /** What the image is called in messages, and where the names in it start from; the name of `source` when not given. */
  readonly name?: string | undefined;
  /** Locks that keep other processes away from its files, QEMU's programs among them. `on` fails where they are not to be had. Default `auto`. */
  readonly locking?: LockingMode | undefined;
  /** Read although another process may be writing, which shows what it has written so far, half done or not; `readOnly` only. Default false. */
  readonly forceShare?: boolean | undefined;
  /** Whether others may write to the disk meanwhile; only some formats (raw, luks) let them anyway. Default true. */
  readonly shareWrites?: boolean | undefined;
  /** The disk will be given another size; claimed by `resize` where it has not been before. Default false. */
  readonly resizes?: boolean | undefined;
  /** For the tests that prove each rule of the write path by its absence. */
  readonly rules?: SafetyRules | undefined;
  /** Aborts the opening. */
  readonly signal?: AbortSignal | undefined;
  /** Told of everything from the first moment on, warnings while opening included. */
  readonly onEvent?: ((event: ImageEvent) => void) | undefined;
}

/** How a damaged image is read. */
export interface RecoverChoice extends Omit<RecoveryRequest, 'options' | 'signal'> {
  /** What is known of the image, by the names of the driver's `recoverOptions`, or what gives them once the format is known. */
  readonly options?: OpenOptionsInput | undefined;
}
