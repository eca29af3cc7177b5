/** Finds the slot of an L2 table by what it shares with the tables of other trees: a table that was copied when a snapshot was taken still names most
 *  of the clusters that the snapshot's table names, at the same places. Spec: qcow2, "Snapshots".
 *  Invariant: memory is bounded by `MAX_ENTRIES`, time by two reads of each table. */
import { type JobOptions, Pacer } from '../../base/job.ts';
import type { BlockNode } from '../../core/node.ts';
import type { Books } from './recover-books.ts';
import { BAD, EntryReader, type EntryRules } from './recover-entries.ts';
import type { Tree } from './recover-trees.ts';

/** Clusters that are remembered with their slot. */
const MAX_ENTRIES = 1_048_576;

export interface MatchParts {
  readonly file: BlockNode;
  readonly rules: EntryRules;
  readonly books: Books;
  readonly options: JobOptions;
}

/** @param others trees whose slots are known
 *  @returns for each of `orphans` that shares something: the slot that it shares most with. */
export async function matchSlots(
  orphans: readonly number[],
  others: readonly Tree[],
  parts: MatchParts,
): Promise<ReadonlyMap<number, number>> {
  const found = new Map<number, number>();
  if (orphans.length === 0 || others.length === 0) return found;
  const { l2Entries } = parts.rules.geometry;
  // Where a cluster is named: its slot and its place in the table, as one number.
  const named = new Map<number, number>();
  const entries = new TableEntries(parts);
  for (const { tables } of others) {
    for (let slot = 0; slot < tables.length && named.size < MAX_ENTRIES; slot++) {
      const table = tables[slot] as number;
      const facts = parts.books.tables.get(table);
      if (facts === undefined || facts.garbage || facts.mapped === 0) continue;
      await entries.each(table, (index, host) => named.set(host, slot * l2Entries + index));
    }
  }
  for (const orphan of orphans) {
    const votes = new Map<number, number>();
    await entries.each(orphan, (index, host) => {
      const place = named.get(host);
      if (place === undefined || place % l2Entries !== index) return;
      const slot = Math.floor(place / l2Entries);
      votes.set(slot, (votes.get(slot) ?? 0) + 1);
    });
    let best = 0;
    for (const [slot, count] of votes) {
      if (count <= best) continue;
      best = count;
      found.set(orphan, slot);
    }
  }
  return found;
}

class TableEntries {
  readonly #parts: MatchParts;
  readonly #reader: EntryReader;
  readonly #bytes: Uint8Array;
  readonly #pacer = new Pacer();

  constructor(parts: MatchParts) {
    this.#parts = parts;
    this.#reader = new EntryReader(parts.rules);
    this.#bytes = new Uint8Array(parts.rules.geometry.clusterSize);
  }

  async each(table: number, tell: (index: number, host: number) => void): Promise<void> {
    const { l2Entries, l2EntrySize } = this.#parts.rules.geometry;
    const reading = this.#parts.file.read(table, this.#bytes);
    if (reading !== undefined) await reading;
    if (this.#pacer.due) await this.#pacer.pause(this.#parts.options.signal);
    const view = new DataView(this.#bytes.buffer);
    for (let index = 0; index < l2Entries; index++) {
      const kind = this.#reader.read(view, index * l2EntrySize, -1);
      if (kind !== BAD && this.#reader.host >= 0) tell(index, this.#reader.host);
    }
  }
}
