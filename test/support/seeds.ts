/** How many seeds the random tests take: ten times as many in the long run. */
import { findViolation } from '../../src/testing/model.ts';

const LONG = process.env.COWDISK_LONG === '1';

export function scaled(count: number): number {
  return LONG ? count * 10 : count;
}

/** Milliseconds for a test that takes seconds with the usual number of seeds. */
export const SEED_TIMEOUT = LONG ? 1_200_000 : 120_000;

/** Runs seeds one after the other; the first failure is the test's, and names its seed. */
export async function everySeed(count: number, run: (seed: number) => Promise<unknown>): Promise<void> {
  const violation = await findViolation(run, 1, scaled(count));
  if (violation !== undefined) throw violation.error;
}
