/** The checksum of a disk against its hash alone: `node bench/checksum.mjs DIRECTORY PAIRS`, prints one line of JSON.
 *  In turn (A B A B …), in one process: SHA-256 over as many bytes in memory, on one thread; and `checksumImage` over a file in which
 *  everything is data, which is in the page cache. What counts is the ratio of the rates, per core;
 *  CPU time of all threads is told beside it, which hardly depends on what else the machine does. */
import { createHash } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, rmSync, writeSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { checksumImage, openImage } from '../dist/node.js';

const [, , directory, pairs] = process.argv;
const MiB = 2 ** 20;
const SIZE = 1024 * MiB;
const name = join(directory, 'checksum.raw');
const bytes = Buffer.alloc(4 * MiB, 'what a disk may hold, over and over');

makeFile();
try {
  console.log(JSON.stringify(await run()));
} finally {
  rmSync(name, { force: true });
}

async function run() {
  const cores = availableParallelism();
  await checksum();
  hash();
  const found = [];
  for (let i = 0; i < Number(pairs); i++) {
    const one = await timed(hash);
    const all = await timed(checksum);
    const [alone, whole] = [SIZE / one.wall, SIZE / all.wall];
    found.push({ alone, whole, ratio: whole / (alone * cores), cpuAlone: one.cpu, cpuWhole: all.cpu });
  }
  return { cores, bytes: SIZE, pairs: found.sort((a, b) => a.ratio - b.ratio) };
}

/** The same blocks, of 1 MiB each. */
function hash() {
  for (let at = 0; at < SIZE; at += MiB) {
    const start = at % bytes.length;
    createHash('sha256')
      .update(bytes.subarray(start, start + MiB))
      .digest();
  }
}

async function checksum() {
  const image = await openImage(name, { format: 'raw' });
  const { read } = await checksumImage(image);
  await image.close();
  if (read !== SIZE) throw new Error(`${read} bytes were read of ${SIZE}`);
}

async function timed(body) {
  const before = process.cpuUsage();
  const began = performance.now();
  await body();
  const wall = (performance.now() - began) / 1000;
  // Of all threads.
  const { user, system } = process.cpuUsage(before);
  return { wall, cpu: (user + system) / 1e6 };
}

function makeFile() {
  const fd = openSync(name, 'w');
  ftruncateSync(fd, SIZE);
  for (let at = 0; at < SIZE; at += bytes.length) writeSync(fd, bytes, 0, bytes.length, at);
  closeSync(fd);
}
