import { it } from 'vitest';
import { findViolation } from '../../src/testing/model.ts';
import { runCrash } from '../../src/testing/crash.ts';
import { bitmapUnderTest } from '../support/bitmap-under-test.ts';
const N = Number(process.env.N ?? 5);
const base = { size: 16 * 1024, weights: { share: 2, compressed: 6, flush: 8 }, operations: 40 };
const variants: Record<string, [object, object]> = {
  plain: [{}, {}],
  backing: [{}, {backingSize: 12*1024}],
  thost: [{transform: 'host'}, {}],
  tguest: [{transform: 'guest', unit: 2048}, {cellSize: 128, longest: 40, backingSize: 32*1024}],
  tight: [{spare: 230, unit: 2048}, {operations: 80, weights: {write: 40, zero: 25, discard: 15, compressed: 10, flush: 10, read: 5}}],
  odd: [{unit: 4096}, {size: 14848, weights: {share: 6, flush: 8}}],
  big: [{unit: 512}, {size: 32768, longest: 30, operations: 60}],
  wide: [{unit: 512, tableSize: 16, countsTableSize: 8}, {concurrency: 16, operations: 60}],
};
for (const [name, [v, o]] of Object.entries(variants)) it(name, async () => {
  const t = Date.now();
  let st = 0, w = 0, cuts = 0;
  const f = await findViolation(async (seed) => {
    const r = await runCrash(bitmapUnderTest(v), { seed, ...base, ...o });
    st += r.states; w = Math.max(w, r.widest); cuts += r.cuts;
  } , 1, N);
  console.log(name, Date.now() - t, st, w, cuts, f?.error.message, f?.error.cause);
}, 1e6);
