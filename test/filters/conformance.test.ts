/** Every filter that changes no content against the contract of stores, over stores that answer at once and over those that answer late. */
import type { BlockNode } from '../../src/core/node.ts';
import { blklogwrites } from '../../src/filters/blklogwrites.ts';
import { copyOnRead } from '../../src/filters/copy-on-read.ts';
import { preallocate } from '../../src/filters/preallocate.ts';
import { quorum } from '../../src/filters/quorum-driver.ts';
import { throttle } from '../../src/filters/throttle.ts';
import { ThrottleGroup } from '../../src/filters/throttle-group.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { storeSuite } from '../conformance/store.suite.ts';
import { openFilter } from './support.ts';

type Wrap = (file: BlockNode, readOnly: boolean, others: readonly BlockNode[]) => Promise<BlockNode>;

const limits = { 'iops-total': 10_000_000, 'bps-read': 1_000_000_000_000 };

const FILTERS: Readonly<Record<string, Wrap>> = {
  throttle: (file, readOnly) =>
    openFilter(throttle, { file }, { throttleGroup: 'g' }, { readOnly, objects: { g: new ThrottleGroup(limits) } }),
  quorum: (file, readOnly, others) =>
    openFilter(
      quorum,
      { children: [file, ...others] },
      { voteThreshold: 2, rewriteCorrupted: !readOnly },
      { readOnly },
    ),
  'quorum that reads one after the other': (file, readOnly, others) =>
    openFilter(quorum, { children: [file, ...others] }, { voteThreshold: 2, readPattern: 'fifo' }, { readOnly }),
  'copy-on-read': (file, readOnly) =>
    // Opened for reading alone it is refused; what is below is what would be read.
    readOnly ? Promise.resolve(file) : openFilter(copyOnRead, { file }),
  preallocate: (file, readOnly) =>
    openFilter(preallocate, { file }, { preallocAlign: 65_536, preallocSize: 300_000 }, { readOnly }),
  blklogwrites: (file, readOnly, others) =>
    openFilter(blklogwrites, { file, log: others[0] as BlockNode }, { logSectorSize: 512 }, { readOnly }),
};

for (const [name, wrap] of Object.entries(FILTERS)) {
  for (const seed of [0, 7]) {
    const late = seed > 0;
    storeSuite({
      name: late ? `${name} over late stores` : name,
      create: async () => {
        const memories = [0, 1, 2].map(() => new MemoryStore({ pageSize: 4096 }));
        const put = (stores: readonly MemoryStore[]): BlockNode[] =>
          stores.map((store, i) => (late ? new LateStore({ seed: seed + i }, store) : store));
        const [file, ...others] = put(memories) as [BlockNode, ...BlockNode[]];
        return {
          store: await wrap(file, false, others),
          reopen: async (readOnly) => {
            for (const node of [file, ...others]) await node.close();
            const [again, ...rest] = put(memories.map((memory) => memory.reopen({ readOnly })));
            return wrap(again as BlockNode, readOnly, rest);
          },
        };
      },
      seed: 3,
      steps: late ? 60 : 150,
      longest: 300_000,
    });
  }
}
