/** A file system in memory, as a protocol: named files with identities, links, and a count of what is open.
 *  What a test needs to see of it (who opened what, and that everything is closed again) is public. */
import type { Pending } from '../../../src/base/async.ts';
import { type BlockError, fromSystemError } from '../../../src/base/errors.ts';
import type { ExtentList } from '../../../src/core/extent.ts';
import type { BlockNode } from '../../../src/core/node.ts';
import type { CreateFileOptions, FileStatus, OpenFileOptions, ProtocolDriver } from '../../../src/core/protocol.ts';
import {
  BaseStore,
  type IoOptions,
  type StoreLimits,
  type StoreStatus,
  type StoreSupports,
  type TruncateOptions,
  type WriteOptions,
  type ZeroOptions,
} from '../../../src/core/store.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';

/** One open of a file. Many may be open on one file at a time. */
class Handle extends BaseStore {
  readonly limits: StoreLimits;
  readonly supports: StoreSupports;
  readonly #file: MemoryFile;
  readonly #onClose: () => void;

  constructor(name: string, file: MemoryFile, readOnly: boolean, onClose: () => void) {
    super(name, 'memory');
    this.#file = file;
    this.limits = file.content.limits;
    const { supports } = file.content;
    this.supports = readOnly
      ? { ...supports, write: false, truncate: false, writeZeroes: 'no', discard: false }
      : supports;
    this.#onClose = onClose;
  }

  get size(): number {
    return this.#file.content.size;
  }
  async status(): Promise<StoreStatus> {
    const status = await this.#file.content.status?.();
    return { ...status, identity: this.#file.identity };
  }
  protected _read(offset: number, into: Uint8Array, options?: IoOptions): Pending {
    return this.#file.content.read(offset, into, options);
  }
  protected _write(offset: number, from: Uint8Array, options?: WriteOptions): Pending {
    return this.#file.content.write(offset, from, options);
  }
  protected _writeZeroes(offset: number, length: number, options?: ZeroOptions): Pending {
    return this.#file.content.writeZeroes(offset, length, options);
  }
  protected _discard(offset: number, length: number, options?: IoOptions): Pending {
    return this.#file.content.discard(offset, length, options);
  }
  protected _extents(offset: number, length: number, into: ExtentList, options?: IoOptions): Pending {
    return this.#file.content.extents(offset, length, into, options);
  }
  protected _flush(options?: IoOptions): Pending {
    return this.#file.content.flush(options);
  }
  protected _truncate(size: number, options?: TruncateOptions): Pending {
    return this.#file.content.truncate(size, options);
  }
  protected async _close(): Promise<void> {
    this.#onClose();
  }
}

export interface MemoryFile {
  readonly identity: string;
  readonly content: BlockNode;
}

export interface MemoryFilesOptions {
  /** Puts something in front of each file that is opened or created. */
  readonly wrap?: (node: BlockNode, name: string) => BlockNode;
  /** Without renaming, targets are written in place. */
  readonly canRename?: boolean;
}

export class MemoryFiles {
  readonly files = new Map<string, MemoryFile>();
  /** Names that are open now, one entry for each open. */
  readonly open: string[] = [];
  /** Everything that was asked for, in order: `open a`, `create b`, … */
  readonly log: string[] = [];
  readonly protocol: ProtocolDriver;
  readonly #wrap: (node: BlockNode, name: string) => BlockNode;
  #nextIdentity = 1;

  constructor(options: MemoryFilesOptions = {}) {
    this.#wrap = options.wrap ?? ((node) => node);
    const canRename = options.canRename ?? true;
    this.protocol = {
      name: 'memory',
      schemes: ['memory'],
      open: async (name, { readOnly }: OpenFileOptions) => {
        this.log.push(`open ${name}`);
        return this.#handle(name, this.#require(name), readOnly);
      },
      create: async (name, { exclusive }: CreateFileOptions) => {
        this.log.push(`create ${name}`);
        const there = this.files.get(name);
        if (there !== undefined && exclusive === true) throw systemError('EEXIST', `could not create "${name}"`);
        if (there === undefined) this.add(name, new MemoryStore({ name }));
        else await there.content.truncate(0);
        return this.#handle(name, this.#require(name), false);
      },
      status: async (name): Promise<FileStatus | undefined> => {
        const file = this.files.get(name);
        return file === undefined ? undefined : { kind: 'file', size: file.content.size, identity: file.identity };
      },
      ...(canRename
        ? {
            rename: async (from: string, to: string) => {
              this.log.push(`rename ${from} ${to}`);
              this.files.set(to, this.#require(from));
              this.files.delete(from);
            },
            remove: async (name: string) => {
              this.log.push(`remove ${name}`);
              this.#require(name);
              this.files.delete(name);
            },
          }
        : {}),
      resolve: (base, relative) => {
        if (relative.startsWith('/') || relative.startsWith('memory:')) return relative;
        return base.slice(0, base.lastIndexOf('/') + 1) + relative;
      },
    };
  }

  /** Puts a file there. */
  add(name: string, content: BlockNode | Uint8Array): MemoryFile {
    const store = content instanceof Uint8Array ? MemoryStore.from(content, { name, pageSize: 512 }) : content;
    const file = { identity: `memory:${this.#nextIdentity++}`, content: store };
    this.files.set(name, file);
    return file;
  }

  /** A second name for the same file. */
  link(name: string, existing: string): void {
    this.files.set(name, this.#require(existing));
  }

  bytes(name: string): Uint8Array {
    const { content } = this.#require(name);
    const bytes = new Uint8Array(content.size);
    void content.read(0, bytes);
    return bytes;
  }

  names(): string[] {
    return [...this.files.keys()].sort((a, b) => (a < b ? -1 : 1));
  }

  #require(name: string): MemoryFile {
    const file = this.files.get(name);
    if (file === undefined) throw systemError('ENOENT', `could not open "${name}"`);
    return file;
  }

  #handle(name: string, file: MemoryFile, readOnly: boolean): BlockNode {
    this.open.push(name);
    const handle = new Handle(name, file, readOnly, () => {
      this.open.splice(this.open.indexOf(name), 1);
    });
    return this.#wrap(handle, name);
  }
}

function systemError(errno: string, doing: string): BlockError {
  return fromSystemError(Object.assign(new Error(errno), { code: errno }), doing);
}
