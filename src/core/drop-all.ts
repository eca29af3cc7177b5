/** Emptying a layer range by range, for formats without a way of their own. Owns the walk; the format drops.
 *  Invariant: an interruption leaves a layer that is partly dropped, and nothing else wrong. */
import { Pacer, throwIfAborted } from '../base/job.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import type { FormatNode } from './format.ts';
import { RunList } from './run.ts';
import { requireProgress } from './transfer.ts';

/** Drops everything that the layer holds; what is below shows then.
 *  @param unmap drops whole units, so that the backing file shows.
 *  @returns false when the format cannot.
 *  @throws {@link BlockError} ABORTED. */
export async function dropAll(
  format: FormatNode,
  unmap: (offset: number, length: number) => Promise<'done' | 'unsupported'>,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  const { unit, virtualSize } = format;
  const runs = new RunList();
  const pacer = new Pacer();
  for (let at = 0; at < virtualSize; ) {
    runs.reset(at, virtualSize);
    await format.map(at, virtualSize - at, runs);
    requireProgress(runs, at, format.format);
    const held = firstHeld(runs);
    if (held === undefined) at = runs.guestEnd;
    else {
      // What else lies in its units goes, too: everything is dropped.
      const start = alignDown(held.start, unit);
      const end = alignUp(held.end, unit);
      if ((await unmap(start, end - start)) === 'unsupported') return false;
      at = end;
    }
    if (pacer.due) await pacer.pause(signal);
    else throwIfAborted(signal);
  }
  return true;
}

/** The first stretch of the list that the layer decides. */
function firstHeld(runs: RunList): { readonly start: number; readonly end: number } | undefined {
  let start = -1;
  let end = -1;
  for (let i = 0; i < runs.count; i++) {
    const { kind, guestOffset, length } = runs.at(i);
    if (kind !== 'unallocated') {
      if (start < 0) start = guestOffset;
      end = guestOffset + length;
    } else if (start >= 0) break;
  }
  return start < 0 ? undefined : { start, end };
}
