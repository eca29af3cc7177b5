/** From a passphrase to a key, at a cost that is chosen when a slot is made and bounded when a stranger's header asks for it.
 *  Owns PBKDF2's bookkeeping: the measuring of how many iterations fill a time, and the budget of an unlocking.
 *  A round is one hash-long output block of one iteration: what PBKDF2 really spends. */
import { digestBytes } from './algorithms.ts';
import { fault } from './fault.ts';
import type { CryptoProvider } from './provider.ts';

/** Rounds that one unlocking may spend in all its slots. QEMU has no bound: one header may ask for 8 times 2^32 iterations of up to 4 rounds,
 *  which is hours. 2^30 rounds are minutes (5 to 20 million a second). Eight slots that were each made to take QEMU's 2 seconds need a
 *  quarter of it on the fastest machines, one slot made to take a minute fits, too. */
export const DEFAULT_ROUND_LIMIT = 2 ** 30;

/** Fewest iterations of slots and digests made here, as in QEMU and cryptsetup. */
const LEAST_ITERATIONS = 1000;
/** A length of time that can be measured well enough. */
const MEASURED_MS = 100;
const FIRST_MEASURED = 2 ** 15;
const MOST_MEASURED = 2 ** 22;
/** What the runtime's PBKDF2 takes. */
const MOST_ITERATIONS = 2 ** 31 - 1;

/** Infinite where no runtime computes it. @param length bytes wanted */
export function roundsOf(hash: string, iterations: number, length: number): number {
  if (iterations > MOST_ITERATIONS) return Number.POSITIVE_INFINITY;
  return iterations * Math.ceil(length / digestBytes(hash));
}

/** What is left to spend. */
export class RoundBudget {
  readonly limit: number;
  #left: number;

  constructor(limit: number) {
    this.limit = limit;
    this.#left = limit;
  }

  /** Takes rounds out. @returns false, and takes none, where there are not enough. */
  take(rounds: number): boolean {
    if (rounds > this.#left) return false;
    this.#left -= rounds;
    return true;
  }
}

/** How many iterations take `ms` milliseconds here.
 *  @param share of that time to really use: 1, or 1/8 for the digest that every attempt has to compute again
 *  @throws {@link BlockError} OPTION `luks.iter-time` when that is so long that nothing would unlock it again. */
export async function iterationsFor(
  ms: number,
  share: number,
  hash: string,
  length: number,
  provider: CryptoProvider,
  subject: string,
): Promise<number> {
  if (!(ms >= 0)) throw fault(subject, 'iter-time', `iter-time ${ms} is no time`, { iterTime: ms }, 'OPTION');
  // no need to measure for what any machine does in no time
  if (ms === 0) return LEAST_ITERATIONS;
  const perMs = await iterationsPerMs(hash, length, provider);
  const iterations = Math.max(LEAST_ITERATIONS, Math.floor(perMs * ms * share));
  if (roundsOf(hash, iterations, length) <= DEFAULT_ROUND_LIMIT / 2) return iterations;
  throw fault(
    subject,
    'iter-time',
    `iter-time ${ms} ms makes ${iterations} PBKDF2 iterations, more than can be unlocked again`,
    { iterTime: ms, iterations },
    'OPTION',
  );
}

/** The better of two measurements, because other work makes a machine look slow and never fast. */
async function iterationsPerMs(hash: string, length: number, provider: CryptoProvider): Promise<number> {
  const salt = new Uint8Array(32);
  const password = new Uint8Array(16);
  let iterations = FIRST_MEASURED;
  let best = 0;
  for (let good = 0; good < 2; ) {
    const start = provider.now();
    await provider.pbkdf2(hash, password, salt, iterations, length);
    const ms = Math.max(provider.now() - start, 0.001);
    if (ms < MEASURED_MS && iterations < MOST_MEASURED) {
      iterations = Math.min(MOST_MEASURED, Math.ceil(iterations * Math.min(10, (MEASURED_MS * 1.2) / ms)));
      continue;
    }
    best = Math.max(best, iterations / ms);
    good++;
  }
  return best;
}
