/** A new file for an image: written beside its place, put there at the end. Owns temporary names.
 *  Invariants: an existing regular file is untouched until `commit`, and locked until then as if it were being written; after `discard` no temporary file is left;
 *  devices, pipes, and stores whose protocol cannot rename are written in place, and `inPlace` says so. */
import { BlockError, isBlockError } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import type { BlockNode } from '../core/node.ts';
import { CREATION_CLAIM, type FileUse, writingClaim } from '../core/permissions.ts';
import type { CreateFileOptions, FileStatus, LockingMode, OpenFileOptions, ProtocolDriver } from '../core/protocol.ts';

/** Temporary names tried before giving up: leftovers of killed programs keep theirs. */
const MAX_NAMES = 100;

export interface TargetFileOptions {
  /** Fail with EXISTS when something is there. */
  readonly exclusive?: boolean | undefined;
  /** Nothing need be durable, not even at the end; ignored where a file is replaced. */
  readonly unsafe?: boolean | undefined;
  /** As in `OpenFileOptions`. */
  readonly locking?: LockingMode | undefined;
  /** How the format of the new image treats its file. Default `exclusive`. */
  readonly use?: FileUse | undefined;
  readonly signal?: AbortSignal | undefined;
}

export class TargetFile {
  /** Where the file shall be. */
  readonly name: string;
  /** Open for writing. */
  readonly file: BlockNode;
  /** The file at `name` itself is being written. */
  readonly inPlace: boolean;
  /** What was there before. */
  readonly before: FileStatus | undefined;
  readonly #protocol: ProtocolDriver;
  readonly #temporary: string | undefined;
  /** Where the temporary file goes in the end: `name`, or where that leads. */
  readonly #place: string;
  /** The file that is going to be replaced, open for its locks. */
  readonly #old: BlockNode | undefined;

  private constructor(
    protocol: ProtocolDriver,
    name: string,
    file: BlockNode,
    before: FileStatus | undefined,
    temporary: string | undefined,
    place: string,
    old?: BlockNode,
  ) {
    this.#protocol = protocol;
    this.name = name;
    this.file = file;
    this.before = before;
    this.#temporary = temporary;
    this.#place = place;
    this.#old = old;
    this.inPlace = temporary === undefined;
  }

  /** @throws {@link BlockError} EXISTS, LOCKED, ACCESS, READ_ONLY, NOT_FOUND (directory), UNSUPPORTED (`target.create`), INVALID_ARGUMENT (a directory). */
  static async open(protocol: ProtocolDriver, name: string, options: TargetFileOptions = {}): Promise<TargetFile> {
    throwIfAborted(options.signal);
    if (protocol.create === undefined) {
      throw new BlockError('UNSUPPORTED', `"${name}": ${protocol.name} cannot create files`, {
        reason: 'target.create',
        details: { name, protocol: protocol.name },
      });
    }
    const before = await protocol.status?.(name);
    if (before !== undefined && options.exclusive === true) {
      throw new BlockError('EXISTS', `"${name}": there is something already`, {
        reason: 'target.exists',
        details: { name, errno: 'EEXIST' },
      });
    }
    if (before?.kind === 'directory') {
      throw new BlockError('INVALID_ARGUMENT', `could not create "${name}": is a directory`, {
        reason: 'target.directory',
        details: { name, errno: 'EISDIR' },
      });
    }
    const { signal, unsafe, locking, use = 'exclusive' } = options;
    if (before !== undefined && before.kind !== 'file') {
      // A pipe is created, not opened: opening is for what can be read as well.
      const file =
        before.kind === 'pipe'
          ? await protocol.create(name, { signal })
          : await openToReplace(protocol, name, use, { readOnly: false, unsafe, locking, signal });
      return new TargetFile(protocol, name, file, before, undefined, name);
    }
    if (protocol.rename === undefined || protocol.remove === undefined) {
      const file = await protocol.create(name, { unsafe, locking, signal });
      return new TargetFile(protocol, name, file, before, undefined, name);
    }
    // Replacing a file that may not be written would be possible, and wrong.
    const old =
      before === undefined
        ? undefined
        : await openToReplace(protocol, name, use, { readOnly: false, unsafe: true, locking, signal });
    const place = before?.realName ?? name;
    const like = before === undefined ? undefined : place;
    // What replaces a file is durable before it does: else a power cut could leave neither the old content nor the new.
    const durable = before === undefined ? unsafe : false;
    try {
      const { file, temporary } = await createTemporary(protocol, place, { like, unsafe: durable, locking, signal });
      return new TargetFile(protocol, name, file, before, temporary, place, old);
    } catch (error) {
      await old?.close();
      throw error;
    }
  }

  /** Closes the file and puts it in its place. */
  async commit(): Promise<void> {
    try {
      await this.file.close();
      if (this.#temporary !== undefined) await this.#protocol.rename?.(this.#temporary, this.#place);
      await this.#old?.close();
    } catch (error) {
      await this.discard();
      throw error;
    }
  }

  /** Gives up: closes the file and removes it where it is only ours. Tells no error: another one is being told. */
  async discard(): Promise<void> {
    try {
      await this.file.close();
      await this.#old?.close();
    } catch {
      // What could not be written is thrown away anyway.
    }
    if (this.#temporary === undefined) return;
    try {
      await this.#protocol.remove?.(this.#temporary);
    } catch {
      // It stays as a hidden file; the error that led here is more important.
    }
  }
}

/** What stands there is somebody else's, as long as he uses it. */
async function openToReplace(
  protocol: ProtocolDriver,
  name: string,
  use: FileUse,
  options: OpenFileOptions,
): Promise<BlockNode> {
  const file = await protocol.open(name, options);
  try {
    file.locks?.claim(CREATION_CLAIM);
    file.locks?.claim(writingClaim(use));
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function createTemporary(
  protocol: ProtocolDriver,
  name: string,
  options: Omit<CreateFileOptions, 'exclusive'>,
): Promise<{ file: BlockNode; temporary: string }> {
  const create = protocol.create as NonNullable<ProtocolDriver['create']>;
  for (let attempt = 1; ; attempt++) {
    const temporary = protocol.resolve(name, `.${baseName(name)}.part${attempt}`);
    try {
      const file = await create(temporary, { ...options, exclusive: true });
      return { file, temporary };
    } catch (error) {
      if (attempt >= MAX_NAMES || !isBlockError(error) || error.code !== 'EXISTS') throw forTarget(error, name);
    }
  }
}

/** The user knows the target, not the temporary name. */
function forTarget(error: unknown, name: string): unknown {
  if (!isBlockError(error)) return error;
  const text = error.message.slice(error.message.lastIndexOf(': ') + 2);
  return new BlockError(error.code, `could not create "${name}": ${text}`, {
    reason: error.reason ?? 'target.create',
    details: { ...error.details, name },
    cause: error,
  });
}

/** The last part of a name, short enough that a temporary name made of it is no longer than names may be. */
function baseName(name: string): string {
  const last = name.slice(Math.max(name.lastIndexOf('/'), name.lastIndexOf('\\'), name.indexOf(':')) + 1);
  return last.length > 64 ? last.slice(0, 64) : last;
}
