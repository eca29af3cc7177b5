/** What a disk's frozen copies (`share`) must read as: exactly what was read right after each was made; after a crash, one of the values
 *  that were allowed then. */
import type { GuestHistory } from './guest-history.ts';

/** What a `share` froze. */
interface Frozen {
  readonly content: Uint8Array;
  /** By cell: whose values it may hold. */
  readonly allowed: readonly (readonly number[])[];
}

/** The contents that `share` froze, with the times in which each was made. */
export class FrozenContents {
  readonly #tick: () => number;
  readonly #all: { readonly startTick: number; endTick: number; frozen: Frozen | undefined }[] = [];

  constructor(tick: () => number = () => 0) {
    this.#tick = tick;
  }

  /** `undefined` while another one runs. */
  begin(): object | undefined {
    if (this.#all.at(-1)?.endTick === Number.POSITIVE_INFINITY) return undefined;
    const turn = { startTick: this.#tick(), endTick: Number.POSITIVE_INFINITY, frozen: undefined };
    this.#all.push(turn);
    return turn;
  }

  end(turn: object, frozen: Frozen): void {
    const last = this.#all.at(-1);
    if (last === undefined || last !== turn) throw new Error('not the running share');
    last.frozen = frozen;
    last.endTick = this.#tick();
  }

  /** How many had been made at `tick`. */
  doneBy(tick: number): number {
    return this.#all.filter(({ endTick }) => endTick <= tick).length;
  }

  /** With nothing running: the content is the last one, byte for byte. */
  findChange(found: Uint8Array | undefined): string | undefined {
    const wanted = this.#all.at(-1)?.frozen?.content;
    if (wanted === undefined || found === undefined)
      return wanted === found ? undefined : 'a frozen content is missing';
    const at = firstDifference(found, wanted);
    return at < 0 ? undefined : `the frozen content has changed at offset ${at}`;
  }

  /** After a crash at `tick`. Where writes overlapped, any of them may have been last in the store: values are compared, not bytes. */
  findWrong(found: Uint8Array | undefined, tick: number, history: GuestHistory): string | undefined {
    const lastDone = this.#all.findLastIndex(({ endTick }) => endTick <= tick);
    // One that had begun may be there or not, with a content that was never asked for.
    if (this.#all.slice(lastDone + 1).some(({ startTick }) => startTick <= tick)) return undefined;
    const wanted = this.#all[lastDone]?.frozen;
    if (wanted === undefined || found === undefined)
      return wanted === found ? undefined : 'a frozen content is missing';
    const wrong = history.findWrong(found, 0, (cell) => wanted.allowed[cell] ?? []);
    return wrong === undefined ? undefined : `frozen: ${wrong}`;
  }
}

/** Where two buffers first differ; -1: nowhere. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return i;
  return a.length === b.length ? -1 : length;
}
