/** Every store of the project against the store contract. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { BlockNode } from '../../src/core/node.ts';
import { fileProtocol } from '../../src/storage/file.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { SliceStore } from '../../src/storage/slice.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { RecordingStore } from '../../src/testing/recording-store.ts';
import type { StoreUnderTest } from '../../src/testing/store-suite.ts';
import { storeSuite } from './store.suite.ts';

const FAR = 5 * 2 ** 32 + 4096;

/** A memory store seen through a wrapper, which is put around it again when it is opened again. */
function overMemory(memory: MemoryStore, wrap: (inner: BlockNode) => BlockNode): StoreUnderTest {
  return { store: wrap(memory), reopen: (readOnly) => wrap(memory.reopen({ readOnly })) };
}

async function overFile(environment: Record<string, string>): Promise<StoreUnderTest> {
  const directory = mkdtempSync(join(tmpdir(), 'cowdisk-store-'));
  const name = join(directory, 'disk.raw');
  Object.assign(process.env, environment);
  return {
    store: (await fileProtocol.create?.(name, {})) as BlockNode,
    reopen: (readOnly) => fileProtocol.open(name, { readOnly }),
    dispose: () => {
      for (const key of Object.keys(environment)) delete process.env[key];
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

storeSuite({
  name: 'memory',
  create: () => overMemory(new MemoryStore(), (inner) => inner),
  farOffset: FAR,
  steps: 600,
});

storeSuite({
  name: 'memory with small pages',
  create: () => overMemory(new MemoryStore({ pageSize: 512 }), (inner) => inner),
  farOffset: FAR,
  seed: 2,
});

storeSuite({
  name: 'memory with 4 KiB sectors',
  create: () => overMemory(new MemoryStore({ requestAlign: 4096 }), (inner) => inner),
  farOffset: FAR,
  seed: 3,
});

storeSuite({
  name: 'slice of fixed size with 512-byte sectors',
  create: () =>
    overMemory(new MemoryStore({ requestAlign: 512, size: 2 ** 20 }), (inner) => {
      return new SliceStore(inner, { offset: 1024, size: 500 * 1024 });
    }),
});

storeSuite({ name: 'file', create: () => overFile({}), farOffset: FAR });

storeSuite({
  name: 'file without native calls',
  create: () => overFile({ COWDISK_NO_NATIVE: '1' }),
  farOffset: FAR,
  seed: 2,
});

storeSuite({
  name: 'slice of fixed size',
  create: () =>
    overMemory(MemoryStore.from(new Uint8Array(700_000).fill(0xee)), (inner) => {
      return new SliceStore(inner, { offset: 100_000, size: 500_000 });
    }),
});

storeSuite({
  name: 'slice to the end',
  create: () =>
    overMemory(MemoryStore.from(new Uint8Array(1000).fill(0xee)), (inner) => new SliceStore(inner, { offset: 513 })),
  farOffset: FAR,
});

storeSuite({
  name: 'slice of a file',
  create: async () => {
    const file = await overFile({});
    await file.store.truncate(10_000);
    const wrap = (inner: BlockNode): BlockNode => new SliceStore(inner, { offset: 4096 });
    return {
      ...file,
      store: wrap(file.store),
      reopen: async (readOnly) => wrap(await (file.reopen?.(readOnly) as Promise<BlockNode>)),
    };
  },
});

storeSuite({
  name: 'recording',
  create: () => overMemory(new MemoryStore(), (inner) => new RecordingStore(inner)),
});

storeSuite({
  name: 'fault without faults',
  create: () => overMemory(new MemoryStore(), (inner) => new FaultStore(inner)),
});

for (const seed of [1, 2, 3]) {
  storeSuite({
    name: `late, order ${seed}`,
    create: () => overMemory(new MemoryStore({ pageSize: 512 }), (inner) => new LateStore({ seed }, inner)),
    seed,
    steps: 60,
    longest: 100_000,
  });
}

storeSuite({
  name: 'late in whole requests',
  create: () => overMemory(new MemoryStore(), (inner) => new LateStore({ seed: 7, pieceSize: 0 }, inner)),
  steps: 60,
});

storeSuite({
  name: 'a recording of a late store',
  create: () => overMemory(new MemoryStore(), (inner) => new RecordingStore(new LateStore({ seed: 9 }, inner))),
  steps: 60,
});
