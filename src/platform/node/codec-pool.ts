/** The worker threads of the codecs: which file they run, and how many there should be. */
import { existsSync } from 'node:fs';
import { BlockError } from '../../base/errors.ts';
import { builtin } from './builtin.ts';
import { WorkerPool } from './pool.ts';
import type { CodecTasks } from './tasks.ts';

export type CodecPool = WorkerPool<CodecTasks>;

/** More threads than this only wait for the one that maps and writes. */
const MOST_WORKERS = 16;

/** Worker threads that are worth having on this machine: its CPUs, as far as this process may use them. */
export function availableWorkers(): number {
  return Math.min(builtin('node:os').availableParallelism(), MOST_WORKERS);
}

/** A pool of threads for compression; none is started before there is work. */
export function createCodecPool(workers: number, delayMs?: number): CodecPool {
  return new WorkerPool<CodecTasks>({ file: workerFile(), workers, delayMs });
}

/** The compiled worker. From sources (tests run them) it is the one of the last build: Node 20 cannot run TypeScript in a worker. */
function workerFile(): URL {
  if (!import.meta.url.endsWith('.ts')) return new URL('./codec-worker.js', import.meta.url);
  const built = new URL('../../../dist/platform/node/codec-worker.js', import.meta.url);
  if (!existsSync(built)) {
    throw new BlockError(
      'UNSUPPORTED',
      'worker threads need the compiled library, which is not there; run: npm run build',
      {
        reason: 'pool.not-built',
      },
    );
  }
  return built;
}
