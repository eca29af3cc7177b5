/** How many iterations fill a time, on clocks of any speed, and what an unlocking may spend. */
import { describe, expect, it } from 'vitest';
import { DEFAULT_ROUND_LIMIT, iterationsFor, RoundBudget, roundsOf } from '../../src/crypto/key-derivation.ts';
import type { CryptoProvider } from '../../src/crypto/provider.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { SUBJECT } from './support.ts';

/** A runtime on which PBKDF2 takes its time on the clock and none in truth. @param noise factors by which successive calls are slower */
function machine(iterationsPerMs: number, noise: readonly number[] = [1]) {
  let now = 0;
  let calls = 0;
  let spent = 0;
  const provider: CryptoProvider = {
    ...nodeCrypto,
    now: () => now,
    pbkdf2: async (_hash, _password, _salt, iterations, length) => {
      now += (iterations / iterationsPerMs) * (noise[calls % noise.length] as number);
      calls++;
      spent += iterations;
      return new Uint8Array(length);
    },
  };
  return { provider, spent: () => spent, elapsed: () => now };
}

describe('iterationsFor', () => {
  it.each([1, 30, 500, 2500, 20_000])(
    'finds what fills the time of a machine that does %i a millisecond',
    async (per) => {
      const { provider } = machine(per);
      const iterations = await iterationsFor(2000, 1, 'sha256', 64, provider, SUBJECT);
      expect(iterations / (per * 2000)).toBeCloseTo(1, 3);
      expect(await iterationsFor(2000, 1 / 8, 'sha256', 20, provider, SUBJECT)).toBe(
        Math.max(1000, Math.floor(iterations / 8)),
      );
    },
  );

  // the first call is too short to count
  it.each([[[1, 1, 3]], [[1, 3, 1]]])('believes the faster of two measurements, slowed by %j', async (slower) => {
    const { provider } = machine(2500, slower);
    expect(await iterationsFor(1000, 1, 'sha256', 32, provider, SUBJECT)).toBe(2_500_000);
  });

  it('never makes fewer than 1000', async () => {
    const { provider } = machine(2500);
    expect(await iterationsFor(0, 1, 'sha256', 64, provider, SUBJECT)).toBe(1000);
  });

  it('measures for a moment only, on slow machines and on clocks that stand still', async () => {
    const usual = machine(2500);
    await iterationsFor(2000, 1, 'sha256', 64, usual.provider, SUBJECT);
    expect(usual.elapsed()).toBeLessThan(400);
    const stopped = machine(Number.POSITIVE_INFINITY);
    await expect(iterationsFor(2000, 1, 'sha256', 64, stopped.provider, SUBJECT)).rejects.toMatchObject({
      code: 'OPTION',
      reason: 'luks.iter-time',
    });
    expect(stopped.spent()).toBeLessThan(2 ** 25);
  });

  it.each([-1, Number.NaN, 3_600_000, Number.POSITIVE_INFINITY])('refuses a time of %d ms', async (ms) => {
    await expect(iterationsFor(ms, 1, 'sha256', 64, machine(2500).provider, SUBJECT)).rejects.toMatchObject({
      code: 'OPTION',
      reason: 'luks.iter-time',
    });
  });
});

describe('roundsOf', () => {
  it('counts digests', () => {
    expect(roundsOf('sha256', 1000, 64)).toBe(2000);
    expect(roundsOf('sha1', 1000, 64)).toBe(4000);
    expect(roundsOf('sha512', 1000, 20)).toBe(1000);
  });

  it('lets nobody pay for more than the runtime takes', () => {
    expect(roundsOf('sha256', 2 ** 31 - 1, 32)).toBe(2 ** 31 - 1);
    expect(roundsOf('sha256', 2 ** 31, 32)).toBe(Number.POSITIVE_INFINITY);
  });
});

describe('RoundBudget', () => {
  it('is spent once', () => {
    const budget = new RoundBudget(10);
    expect(budget.take(6)).toBe(true);
    expect(budget.take(5)).toBe(false);
    expect(budget.take(4)).toBe(true);
    expect(budget.take(1)).toBe(false);
    expect(budget.limit).toBe(10);
  });

  it('has room for eight slots that were made to take two seconds on a machine four times as fast as ours', () => {
    // 5 million rounds a second were measured; the digest takes an eighth of each
    expect(DEFAULT_ROUND_LIMIT).toBeGreaterThan(8 * 2 * 1.125 * 20e6);
  });
});
