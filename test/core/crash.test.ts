import { it } from 'vitest';
import { findViolation } from '../../src/testing/model.ts';
import { runCrash } from '../../src/testing/crash.ts';
import { ALL_RULES } from '../../src/core/safety.ts';
import { bitmapUnderTest } from '../support/bitmap-under-test.ts';
const N = Number(process.env.N ?? 5);
const variants: Record<string, [object, object]> = {
  plain: [{}, {}],
  backing: [{}, {backingSize: 12*1024}],
  thost: [{transform: 'host'}, {}],
};
const base = { size: 16 * 1024, weights: { share: 2, compressed: 6, flush: 8 }, operations: 40 };
for (const [name, [v, o]] of Object.entries(variants)) it(name, async () => {
  const t = Date.now();
  let st = 0, w = 0, cuts = 0;
  const f = await findViolation(async (seed) => {
    const r = await runCrash(bitmapUnderTest(v), { seed, ...base, ...o });
    st += r.states; w = Math.max(w, r.widest); cuts += r.cuts;
  } , 1, N);
  console.log(name, Date.now() - t, st, w, cuts, f?.error.message, f?.error.cause);
});
for (const rule of ['rangeLock', 'drain', 'deferredFree', 'singleFlight','edgeFromOwnMapping', 'refcountsFirst', 'dataFirst', 'copyAtWriteBack'])
  it(rule, async () => {
  const t = Date.now();
  const f = await findViolation((seed) => 
    runCrash(bitmapUnderTest(), { seed, ...base, rules: {...ALL_RULES, [rule]: false} }), 1, N*2);
  console.log(rule, Date.now() - t, f?.seed, f?.error.message);
});
