/** The files that a base names, in memory: what is written stays, and who asked to write is known. */
import { BlockError } from '../../src/base/errors.ts';
import type { ProtocolDriver } from '../../src/core/protocol.ts';
import type { MemoryStore } from '../../src/storage/memory.ts';
import { type Base, copyOf } from './bases.ts';

export interface Companions {
  readonly protocol: ProtocolDriver;
  /** Names that were opened for writing. */
  readonly written: ReadonlySet<string>;
}

export function companions(base: Base): Companions {
  const files = new Map<string, MemoryStore>();
  const written = new Set<string>();
  const protocol: ProtocolDriver = {
    name: 'mem',
    schemes: ['mem'],
    open: async (name, { readOnly }) => {
      const file = base.companions.get(name);
      if (file === undefined) {
        throw new BlockError('NOT_FOUND', `could not open "${name}": no such file or directory`, {
          reason: 'system',
          details: { errno: 'ENOENT' },
        });
      }
      const store = files.get(name)?.reopen() ?? copyOf(file);
      files.set(name, store);
      if (!readOnly) written.add(name);
      if (!readOnly) return store;
      if (!store.closed) await store.close();
      return store.reopen({ readOnly: true });
    },
    resolve: (_base, relative) => relative,
  };
  return { protocol, written };
}
