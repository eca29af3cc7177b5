/** From mapping to status: what `map` and the copier see of a node and its backing chain.
 *  Implements the truth table of QEMU's block status: data, explicit zero, nothing here (the backing file decides, or zeros where it has ended).
 *  Invariant: every extent added lies within one layer; the depth counts layers from the node that was asked. */
import type { Pending } from '../base/async.ts';
import { assert, hex } from '../base/errors.ts';
import { EXTENT, ExtentList } from './extent.ts';
import type { FormatNode } from './format.ts';
import type { BlockNode } from './node.ts';
import type { Run, RunList } from './run.ts';

export interface ExtentCursor {
  at: number;
  readonly end: number;
  readonly into: ExtentList;
  readonly runs: RunList;
}

const PRESENT_DATA = EXTENT.present + EXTENT.data;
const PRESENT_ZERO = EXTENT.present + EXTENT.zero;

/** Adds extents from `cursor.at` on until the range is covered, or the list is full. Where something fails behind extents that are there
 *  already, they stand: whoever asks for the rest meets the failure again. */
export function mapExtents(format: FormatNode, backing: BlockNode | undefined, cursor: ExtentCursor): Pending {
  let waiting: Pending;
  try {
    waiting = walk(format, backing, cursor);
  } catch (error) {
    if (cursor.into.count === 0) throw error;
    return undefined;
  }
  return waiting === undefined ? undefined : untilFailure(waiting, cursor);
}

async function untilFailure(waiting: Promise<void>, cursor: ExtentCursor): Promise<void> {
  try {
    await waiting;
  } catch (error) {
    if (cursor.into.count === 0) throw error;
  }
}

function walk(format: FormatNode, backing: BlockNode | undefined, cursor: ExtentCursor): Pending {
  while (cursor.at < cursor.end) {
    const { runs } = cursor;
    runs.reset(cursor.at, cursor.end);
    const mapping = format.map(cursor.at, cursor.end - cursor.at, runs);
    if (mapping !== undefined) return mapThenAdd(mapping, format, backing, cursor);
    for (let i = 0; i < runs.count; i++) {
      const run = runs.at(i);
      const added = addRun(format, backing, cursor, run);
      if (added === 'full') return undefined;
      if (added !== undefined) return resume(added, format, backing, cursor);
      // The layer below told about a part only, or ends within the run: what is left is mapped again.
      if (cursor.at < run.guestOffset + run.length) break;
    }
  }
  return undefined;
}

async function resume(
  added: Promise<'full' | undefined>,
  format: FormatNode,
  backing: BlockNode | undefined,
  cursor: ExtentCursor,
): Promise<void> {
  // The rest of the old run list is mapped again: after an await, what was looked up before it is stale.
  if ((await added) !== 'full') await walk(format, backing, cursor);
}

async function mapThenAdd(
  mapping: Promise<void>,
  format: FormatNode,
  backing: BlockNode | undefined,
  cursor: ExtentCursor,
): Promise<void> {
  await mapping;
  for (let i = 0; i < cursor.runs.count; i++) {
    const run = cursor.runs.at(i);
    const added = addRun(format, backing, cursor, run);
    if (added === 'full') return;
    if (added !== undefined) {
      if ((await added) === 'full') return;
      break;
    }
    if (cursor.at < run.guestOffset + run.length) break;
  }
  await walk(format, backing, cursor);
}

function addRun(
  format: FormatNode,
  backing: BlockNode | undefined,
  cursor: ExtentCursor,
  run: Run,
): 'full' | undefined | Promise<'full' | undefined> {
  const { into } = cursor;
  switch (run.kind) {
    case 'data':
      if (format.recurse !== 'none') return addRecursing(format, cursor, run);
      return addPlaced(format, cursor, run, PRESENT_DATA, placeOf(format, run));
    case 'zero':
      return addPlaced(format, cursor, run, PRESENT_ZERO, placeOf(format, run));
    case 'encoded':
      return advance(cursor, run.length, into.add(run.length, PRESENT_DATA + EXTENT.compressed));
    case 'unallocated':
      if (backing === undefined || run.guestOffset >= backing.size) {
        // Subclusters of an allocated cluster have their place, whether it holds anything or not.
        return addPlaced(format, cursor, run, EXTENT.zero, placeOf(format, run));
      }
      return addBelow(backing, cursor, run.guestOffset, Math.min(run.length, backing.size - run.guestOffset));
  }
}

/** What is encrypted has no place that anybody could read. */
function placeOf(format: FormatNode, run: Run): number {
  return format.transform === undefined ? run.hostOffset : -1;
}

function addPlaced(
  format: FormatNode,
  cursor: ExtentCursor,
  run: Run,
  flags: number,
  hostOffset: number,
): 'full' | undefined {
  const node = hostOffset < 0 ? undefined : format.children[run.child]?.node.name;
  return advance(cursor, run.length, cursor.into.add(run.length, flags, hostOffset, node));
}

function advance(cursor: ExtentCursor, length: number, added: boolean): 'full' | undefined {
  if (!added) return 'full';
  cursor.at += length;
  return undefined;
}

function addBelow(
  backing: BlockNode,
  cursor: ExtentCursor,
  offset: number,
  length: number,
): 'full' | undefined | Promise<'full' | undefined> {
  const below = new ExtentList(Math.max(16, cursor.into.capacity - cursor.into.count));
  below.reset(offset);
  const pending = backing.extents(offset, length, below);
  if (pending !== undefined) return pending.then(() => copyBelow(below, cursor));
  return copyBelow(below, cursor);
}

function copyBelow(below: ExtentList, cursor: ExtentCursor): 'full' | undefined {
  assert(below.count > 0, `no status at ${hex(below.start)} of the backing file`);
  for (let i = 0; i < below.count; i++) {
    const length = below.lengthAt(i);
    const added = cursor.into.add(
      length,
      below.flagsAt(i),
      below.hostOffsetAt(i),
      below.nodeAt(i),
      below.depthAt(i) + 1,
    );
    if (!added) return 'full';
    cursor.at += length;
  }
  return undefined;
}

/** Asks the file below whether the run's bytes are there at all. */
function addRecursing(
  format: FormatNode,
  cursor: ExtentCursor,
  run: Run,
): 'full' | undefined | Promise<'full' | undefined> {
  const child = format.children[run.child]?.node;
  if (child === undefined) return 'full';
  const below = new ExtentList(256);
  below.reset(run.hostOffset);
  const inside = Math.max(0, Math.min(run.length, child.size - run.hostOffset));
  const { guestOffset, length } = run;
  const node = child.name;
  const pending = inside > 0 ? child.extents(run.hostOffset, inside, below) : undefined;
  const finish = (): 'full' | undefined => {
    assert(inside === 0 || below.count > 0, `"${node}" has no status at ${hex(below.start)}`);
    for (let i = 0; i < below.count; i++) {
      const zero = Math.floor(below.flagsAt(i) / EXTENT.zero) % 2 === 1;
      const flags = format.recurse === 'zero' ? PRESENT_DATA + (zero ? EXTENT.zero : 0) : below.flagsAt(i);
      // What stands there may have it from further below, or may know no place.
      const depth = format.recurse === 'through' ? below.depthAt(i) : 0;
      const added =
        format.recurse === 'zero'
          ? cursor.into.add(below.lengthAt(i), flags, below.startAt(i), node)
          : cursor.into.add(below.lengthAt(i), flags, below.hostOffsetAt(i), below.nodeAt(i), depth);
      if (!added) return 'full';
      cursor.at += below.lengthAt(i);
    }
    if (below.end < run.hostOffset + inside) return undefined;
    // Past the file's end everything reads as zero.
    const rest = guestOffset + length - cursor.at;
    if (rest <= 0 || inside === length) return undefined;
    const flags = format.recurse === 'zero' ? PRESENT_DATA + EXTENT.zero : PRESENT_ZERO;
    return advance(cursor, rest, cursor.into.add(rest, flags, below.end, node));
  };
  return pending === undefined ? finish() : pending.then(finish);
}
