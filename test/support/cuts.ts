/** Every state that a power cut can leave of what was recorded: at each moment, each subset of the changes that no flush covers (all of them where
 *  they are few), some of them torn at 512 bytes. For operations too special for the crash oracle's guest: creating, resizing, changing headers. */
import { below, seededRandom } from '../../src/testing/random.ts';
import {
  type LogEntry,
  type RecordingStore,
  replay,
  SECTOR,
  type WriteLog,
} from '../../src/testing/recording-store.ts';

export interface CutState {
  /** Content of each store. */
  readonly contents: readonly Uint8Array[];
  /** Time of the cut, in ticks of the log. */
  readonly tick: number;
  /** For messages. */
  readonly what: string;
}

type Kept = boolean | ((sector: number) => boolean);

const EXHAUSTIVE = 7;
const SEEDED = 40;

/** @param bases content of each store before the log begins. */
export function* cutStates(
  log: WriteLog,
  stores: readonly RecordingStore[],
  bases: readonly Uint8Array[],
  seed = 1,
): Generator<CutState> {
  const random = seededRandom(seed);
  const changes = log.entries.filter(({ kind }) => kind !== 'flush' && kind !== 'read');
  for (const { cut, tick } of moments(changes, log)) {
    const before = changes.slice(0, cut);
    const open = before.filter((entry) => !isDurable(entry, log, tick));
    for (const kept of subsets(open, random)) {
      const contents = stores.map((store, i) =>
        replay(
          before.filter((entry) => entry.store === store),
          bases[i] ?? new Uint8Array(0),
          (entry) => kept.get(entry) ?? !open.includes(entry),
        ),
      );
      const names = open.filter((entry) => kept.get(entry) !== false).map(({ index }) => index);
      yield {
        contents,
        tick,
        what: `cut before change ${cut} of ${changes.length}, kept of the open: ${names.join(', ')}`,
      };
    }
  }
}

/** Right after each change, and right before the next: flushes lie between. */
function moments(changes: readonly LogEntry[], log: WriteLog): { readonly cut: number; readonly tick: number }[] {
  return [0, ...changes.keys()].flatMap((_, cut) => {
    const last = { cut, tick: changes[cut]?.began ?? log.tick };
    const ended = changes[cut - 1]?.ended;
    return ended === undefined ? [last] : [{ cut, tick: ended }, last];
  });
}

function isDurable(entry: LogEntry, log: WriteLog, tick: number): boolean {
  const { ended } = entry;
  if (ended === undefined || ended > tick || entry.failed) return false;
  if (entry.fua) return true;
  return log.entries.some(
    (flush) =>
      flush.kind === 'flush' &&
      flush.store === entry.store &&
      flush.began > ended &&
      flush.ended !== undefined &&
      flush.ended <= tick &&
      !flush.failed,
  );
}

function* subsets(open: readonly LogEntry[], random: () => number): Generator<Map<LogEntry, Kept>> {
  if (open.length <= EXHAUSTIVE) {
    for (let mask = 0; mask < 2 ** open.length; mask++) {
      yield new Map(open.map((entry, i) => [entry, Math.floor(mask / 2 ** i) % 2 === 1]));
    }
  } else {
    yield new Map(open.map((entry) => [entry, true]));
    yield new Map(open.map((entry) => [entry, false]));
    for (const one of open) {
      yield new Map(open.map((entry) => [entry, entry === one]));
      yield new Map(open.map((entry) => [entry, entry !== one]));
    }
  }
  if (open.length === 0) return;
  const seeded = open.length <= EXHAUSTIVE ? 4 : SEEDED;
  for (let i = 0; i < seeded; i++) yield new Map(open.map((entry) => [entry, torn(entry, random)]));
}

function torn(entry: LogEntry, random: () => number): Kept {
  const choice = below(random, 3);
  if (choice < 2 || entry.kind === 'truncate') return choice === 0;
  const sectors = new Set<number>();
  const last = Math.floor((entry.offset + Math.max(1, entry.length) - 1) / SECTOR);
  for (let sector = Math.floor(entry.offset / SECTOR); sector <= last; sector++) {
    if (random() < 0.5) sectors.add(sector);
  }
  return (sector) => sectors.has(sector);
}
