/** Entry of the worker threads: compression, encryption and hashes of bulk in shared memory. Runs in workers only. */
import { ThreadCiphers } from '../../crypto/bulk.ts';
import { decodeUnits, encodeUnits } from './codecs.ts';
import { nodeCrypto } from './crypto.ts';
import { digestFile, digestUnits } from './digests.ts';
import type { CodecTasks } from './tasks.ts';
import { serveTasks } from './worker-loop.ts';

const ciphers = new ThreadCiphers(nodeCrypto);

serveTasks<CodecTasks>({
  encode: encodeUnits,
  decode: decodeUnits,
  digest: digestUnits,
  digestFile,
  sectors: (task) => {
    ciphers.run(task);
    return undefined;
  },
  forget: ({ id }) => {
    ciphers.forget(id);
    return undefined;
  },
});
