/** Counts what a synchronous piece of work costs: promises it makes, bytes it allocates (garbage included). */
import { createHook } from 'node:async_hooks';
import { Session } from 'node:inspector';

export function promisesIn(work: () => void): number {
  let count = 0;
  const hook = createHook({
    init: (_id, type) => {
      if (type === 'PROMISE') count++;
    },
  });
  hook.enable();
  try {
    work();
  } finally {
    hook.disable();
  }
  return count;
}

interface SamplingNode {
  readonly selfSize: number;
  readonly children: readonly SamplingNode[];
}

/** Bytes allocated on the JavaScript heap, from dense samples: good to a few KiB. */
export function bytesAllocatedIn(work: () => void): number {
  const session = new Session();
  session.connect();
  let total = 0;
  try {
    session.post('HeapProfiler.startSampling', {
      samplingInterval: 64,
      includeObjectsCollectedByMajorGC: true,
      includeObjectsCollectedByMinorGC: true,
    } as object);
    work();
    session.post('HeapProfiler.stopSampling', (error, result) => {
      if (error !== null) throw error;
      const add = (node: SamplingNode): void => {
        total += node.selfSize;
        node.children.forEach(add);
      };
      add((result as { profile: { head: SamplingNode } }).profile.head);
    });
  } finally {
    session.disconnect();
  }
  return total;
}
