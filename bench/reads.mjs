/** Reads through cow and add-cow images in which everything is allocated, against reads of a raw image, and opening and mapping a cow of a
 *  1 TiB disk with a sparse bitmap: `node bench/reads.mjs DIRECTORY PAIRS`, prints one line of JSON.
 *  One process, one file after the other in turn (A B A B …), so that each ratio is of neighbours. */
import { randomBytes } from 'node:crypto';
import { closeSync, copyFileSync, ftruncateSync, openSync, rmSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { createImage, openImage } from '../dist/node.js';

const [, , directory, pairs] = process.argv;
const MiB = 2 ** 20;
const SIZE = 256 * MiB;
const TiB = 2 ** 40;
const path = (name) => join(directory, `reads-${name}`);
const made = [];

const results = await run();
for (const name of made) rmSync(path(name), { force: true });
console.log(JSON.stringify(results));

async function run() {
  const raw = makeRaw();
  const images = { raw: { name: raw, format: 'raw' }, cow: await makeCow(raw), 'add-cow': await makeAddCow(raw) };
  const opened = {};
  for (const [key, { name, format }] of Object.entries(images)) {
    opened[key] = await openImage(name, { format, references: 'allow', onEvent: () => undefined });
  }
  const ratios = [];
  for (const key of ['cow', 'add-cow']) {
    for (const [title, pass] of [
      ['2 MiB in order', readInOrder],
      ['4 KiB at random', readAtRandom],
    ]) {
      await pass(opened.raw);
      await pass(opened[key]);
      const found = [];
      for (let i = 0; i < Number(pairs); i++) {
        const a = await timed(() => pass(opened.raw));
        const b = await timed(() => pass(opened[key]));
        found.push(a / b);
      }
      ratios.push({ name: `${key}, ${title}`, ratios: found.sort((a, b) => a - b) });
    }
  }
  for (const image of Object.values(opened)) await image.close();
  return { ratios, sparse: await sparse() };
}

async function timed(body) {
  const began = performance.now();
  await body();
  return performance.now() - began;
}

async function readInOrder(image) {
  const into = new Uint8Array(2 * MiB);
  for (let at = 0; at < SIZE; at += into.length) await image.read(at, into);
}

async function readAtRandom(image) {
  const into = new Uint8Array(4096);
  let state = 12345;
  for (let i = 0; i < 40_000; i++) {
    state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
    await image.read((state % (SIZE / 4096)) * 4096, into);
  }
}

function note(name) {
  made.push(name);
  rmSync(path(name), { force: true });
  return path(name);
}

/** Everything in it is data. */
function makeRaw() {
  const file = note('full.raw');
  const fd = openSync(file, 'w');
  for (let at = 0; at < SIZE; at += MiB) writeSync(fd, randomBytes(MiB), 0, MiB, at);
  closeSync(fd);
  return file;
}

async function fill(name, format, from) {
  const disk = await openImage(from, { format: 'raw' });
  const image = await openImage(name, { format, readOnly: false, references: 'allow' });
  const bytes = new Uint8Array(2 * MiB);
  for (let at = 0; at < SIZE; at += bytes.length) {
    await disk.read(at, bytes);
    await image.write(at, bytes);
  }
  await image.close();
  await disk.close();
  return { name, format };
}

async function makeCow(raw) {
  const name = note('full.cow');
  await createImage(name, { format: 'cow', size: SIZE, backing: { name: raw, format: 'raw' } });
  return await fill(name, 'cow', raw);
}

async function makeAddCow(raw) {
  const name = note('full.add-cow');
  const imageFile = note('full.add-cow.image');
  const backing = note('full.add-cow.base');
  copyFileSync(raw, backing);
  await createImage(name, {
    format: 'add-cow',
    size: SIZE,
    backing: { name: backing, format: 'raw' },
    options: { imageFile },
  });
  return await fill(name, 'add-cow', raw);
}

/** A sector here and there over the whole disk. */
async function sparse() {
  const base = note('tib.raw');
  const fd = openSync(base, 'w');
  ftruncateSync(fd, TiB);
  closeSync(fd);
  const name = note('tib.cow');
  await createImage(name, { format: 'cow', backing: { name: base, format: 'raw' } });
  const writer = await openImage(name, { format: 'cow', readOnly: false, references: 'allow' });
  const sector = new Uint8Array(512).fill(1);
  for (let at = 0; at < TiB; at += TiB / 1000) await writer.write(Math.floor(at / 512) * 512, sector);
  await writer.close();
  const before = process.memoryUsage().rss;
  let extents = 0;
  const milliseconds = await timed(async () => {
    const image = await openImage(name, { format: 'cow', references: 'allow' });
    for await (const _ of image.extents()) extents++;
    await image.close();
  });
  return {
    milliseconds,
    extents,
    grownBytes: process.memoryUsage().rss - before,
    fileBytes: statSync(name).blocks * 512,
  };
}
