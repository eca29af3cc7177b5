/** Entry of the worker threads: compression of units in shared memory. Runs in workers only. */
import { decodeUnits, encodeUnits } from './codecs.ts';
import type { CodecTasks } from './tasks.ts';
import { serveTasks } from './worker-loop.ts';

serveTasks<CodecTasks>({ encode: encodeUnits, decode: decodeUnits });
