/** Files in memory, by name, as a protocol: where sound images are made. Every file has the same time of change.
 *  Invariant: a file that is removed or replaced is gone for those that open it afterwards, and stays for those that have it open. */
import { BlockError } from '../../base/errors.ts';
import type { OpenFileOptions, ProtocolDriver } from '../../core/protocol.ts';
import { MemoryStore } from '../../storage/memory.ts';

/** Seconds since 1970; those who write the files elsewhere give them the same. */
export const FILE_TIME = 1_600_000_000;
/** Bytes: small clusters leave holes as well. */
const PAGE = 4096;

export class MemoryFiles {
  readonly #files = new Map<string, MemoryStore>();
  readonly protocol: ProtocolDriver = {
    name: 'memory',
    schemes: ['memory'],
    open: async (name, options) => this.#open(name, options),
    create: async (name) => {
      const store = new MemoryStore({ name, pageSize: PAGE });
      this.#files.set(name, store);
      return store;
    },
    status: async (name) => {
      const file = this.#files.get(name);
      if (file === undefined) return undefined;
      return { kind: 'file', size: file.size, modifiedSeconds: FILE_TIME, identity: name };
    },
    rename: async (from, to) => {
      const file = this.#files.get(from);
      if (file === undefined) throw missing(from);
      this.#files.delete(from);
      this.#files.set(to, file);
    },
    remove: async (name) => {
      this.#files.delete(name);
    },
    resolve: (_base, relative) => relative,
  };

  /** What all of them hold. Every one must be closed. */
  contents(): Map<string, Uint8Array> {
    return new Map([...this.#files].map(([name, file]) => [name, file.bytes()]));
  }

  #open(name: string, { readOnly }: OpenFileOptions): MemoryStore {
    const file = this.#files.get(name);
    if (file === undefined) throw missing(name);
    const opened = file.reopen({ readOnly });
    this.#files.set(name, opened);
    return opened;
  }
}

function missing(name: string): BlockError {
  return new BlockError('NOT_FOUND', `could not open "${name}": no such file or directory`, {
    reason: 'system',
    details: { errno: 'ENOENT' },
  });
}
