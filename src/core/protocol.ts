/** Protocols: how a name becomes bytes. A protocol is a value the caller passes; nothing registers itself. Types only. */
import type { OptionSchema } from '../base/options.ts';
import type { BlockNode } from './node.ts';

/** Locks between processes: where they are to be had; wanted, or the opening fails; none. */
export type LockingMode = 'auto' | 'on' | 'off';

export interface OpenFileOptions {
  readonly readOnly: boolean;
  /** Flushes do nothing, the one of `close` included: the content becomes durable when the system writes it back. */
  readonly unsafe?: boolean | undefined;
  /** Default `auto`. */
  readonly locking?: LockingMode | undefined;
  /** Read next to whoever writes: others may do everything. Only with `readOnly`. */
  readonly forceShare?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface CreateFileOptions {
  /** Fail with EXISTS when the name is taken; otherwise an existing file is emptied. */
  readonly exclusive?: boolean;
  /** As in {@link OpenFileOptions}. */
  readonly unsafe?: boolean | undefined;
  /** An existing file that the new one is going to replace: its permissions and, as far as the system allows, its owner are taken over. */
  readonly like?: string | undefined;
  /** As in {@link OpenFileOptions}. */
  readonly locking?: LockingMode | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What stands at a name, without opening it for I/O. */
export interface FileStatus {
  /** `file`: a regular file; `device`: a block or character device; `pipe`: forward only; `other`: sockets and the like. */
  readonly kind: 'file' | 'directory' | 'device' | 'pipe' | 'other';
  readonly size: number;
  /** Seconds since 1970. */
  readonly modifiedSeconds?: number | undefined;
  /** Equal for two names of one file (`dev:ino`). */
  readonly identity: string | undefined;
  /** Where symbolic links lead, when the name is one: what replaces the file belongs there. */
  readonly realName?: string | undefined;
}

/** A protocol's nodes described by options instead of a name. Options go by QEMU's names. */
export interface ProtocolGraph {
  readonly openOptions: OptionSchema;
  /** The options that a name of the protocol stands for. @throws {@link BlockError} INVALID_ARGUMENT. */
  parseName(name: string): Readonly<Record<string, string>>;
  /** The name that stands for just these options; `undefined` where none does. */
  nameOf(options: ReadonlyMap<string, string>): string | undefined;
  /** @param given valid by `openOptions`, by their TypeScript names, with defaults
   *  @throws {@link BlockError} as {@link ProtocolDriver.open}. */
  open(given: Readonly<Record<string, unknown>>, options: OpenFileOptions): Promise<BlockNode>;
}

export interface ProtocolDriver {
  readonly name: string;
  readonly graph?: ProtocolGraph;
  /** Prefixes before the first colon that belong to it (`file`); a name without a known prefix goes to the first protocol of the list. */
  readonly schemes: readonly string[];
  /** @throws {@link BlockError} with the system's errno in `details.errno`, `details.name` the name as given. */
  open(name: string, options: OpenFileOptions): Promise<BlockNode>;
  create?(name: string, options: CreateFileOptions): Promise<BlockNode>;
  /** `undefined` when nothing is there. */
  status?(name: string): Promise<FileStatus | undefined>;
  /** Replaces `to`; both on the same protocol. */
  rename?(from: string, to: string): Promise<void>;
  remove?(name: string): Promise<void>;
  /** The name that `relative`, found inside the file `base`, means. */
  resolve(base: string, relative: string): string;
  /** The name with its directory made canonical and absolute; the last component stays as it is, link or not. */
  absolute?(name: string): Promise<string>;
}
