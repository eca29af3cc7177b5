import { expect, it } from 'vitest';
import { runModel, findViolation } from '../../src/testing/model.ts';
import { ALL_RULES } from '../../src/core/safety.ts';
import { bitmapUnderTest } from '../support/bitmap-under-test.ts';

const variants: Record<string, [object, object]> = {
  plain: [{}, {}],
  backing: [{}, {backingSize: 48*1024}],
  longback: [{}, {backingSize: 128*1024}],
  odd: [{}, {size: 63*1024+512}],
  tguest: [{transform: 'guest'}, {}],
  thost: [{transform: 'host'}, {backingSize: 40*1024}],
  small: [{unit: 4096}, {cellSize: 64, longest: 100}],
  smallt: [{unit: 4096, transform: 'guest'}, {cellSize: 64, longest: 100}],
  faults: [{}, {faults: true, weights: {compressed: 6}}],
  faultst: [{transform: 'host'}, {faults: true, weights: {compressed: 6}}],
};
for (const [name, [v, o]] of Object.entries(variants)) it(name, async () => {
  const t = Date.now();
  const f = await findViolation((seed) => 
    runModel(bitmapUnderTest(v), { seed, size: 64 * 1024, weights: { share: 2, compressed: 6 }, ...o }), 1, Number(process.env.N ?? 20));
  console.log(name, Date.now() - t, f?.error.message, f?.error.cause);
});
for (const rule of ['rangeLock', 'drain', 'deferredFree', 'singleFlight','edgeFromOwnMapping', 'refcountsFirst', 'dataFirst', 'copyAtWriteBack'])
  it(rule, async () => {
  const t = Date.now();
  const f = await findViolation((seed) => 
    runModel(bitmapUnderTest(), { seed, size: 64 * 1024, weights: { share: 4, compressed: 6 }, rules: {...ALL_RULES, [rule]: false} }), 1, 40);
  console.log(rule, Date.now() - t, f?.seed, f?.error.message);
});
