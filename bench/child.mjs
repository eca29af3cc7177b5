/** Runs one program and tells what it cost, as one line of JSON: `node bench/child.mjs OUTPUT PROGRAM ARGUMENT…`.
 *  A process of its own for each run, because the system keeps the highest memory of all children together.
 *  Standard output of the program goes to the file OUTPUT (`-`: nowhere). */
import { spawnSync } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { createRequire } from 'node:module';

const [, , output, command, ...args] = process.argv;
const usageOfChildren = loadUsage();
const target = output === '-' ? 'ignore' : openSync(output, 'w');
const began = process.hrtime.bigint();
const { status, signal, stderr, error } = spawnSync(command, args, {
  stdio: ['ignore', target, 'pipe'],
  encoding: 'utf8',
  // a check tells every finding
  maxBuffer: 256 * 2 ** 20,
});
const wall = Number(process.hrtime.bigint() - began) / 1e9;
if (typeof target === 'number') closeSync(target);
console.log(
  JSON.stringify({
    status: status ?? (error === undefined ? 128 : 127),
    signal,
    stderr: error === undefined ? stderr.slice(0, 2000) : String(error),
    wall,
    ...usageOfChildren(),
  }),
);

/** getrusage(RUSAGE_CHILDREN) through koffi; without it the numbers are not known. */
function loadUsage() {
  let koffi;
  try {
    koffi = createRequire(import.meta.url)('koffi');
  } catch {
    return () => ({});
  }
  const getrusage = koffi.load(null).func('int getrusage(int who, void *usage)');
  return () => {
    const usage = Buffer.alloc(256);
    if (process.platform !== 'linux' || getrusage(-1, usage) !== 0) return {};
    const long = (index) => Number(usage.readBigInt64LE(index * 8));
    return { user: long(0) + long(1) / 1e6, system: long(2) + long(3) / 1e6, peak: long(4) * 1024 };
  };
}
