/** The books: what every table claims against what the refcounts count. From their difference follows which tables can be trusted.
 *  Spec: qcow2, "Host cluster management", "Cluster mapping".
 *  Invariants: each L2 table is read twice, however often it is named: once to count its claims, once to compare them; a table is `clean` only when
 *  every entry, every count and every COPIED flag agrees. */
import { type JobOptions, Pacer, throwIfAborted } from '../../base/job.ts';
import type { BlockNode } from '../../core/node.ts';
import { bitmapClusterAt, readBitmapDirectory } from './bitmap-directory.ts';
import type { Qcow2Header } from './header.ts';
import { ClusterCounts } from './recover-counts.ts';
import { BAD, DATA, ENCODED, EntryReader, type EntryRules, NONE } from './recover-entries.ts';
import { type Evidence, UNKNOWN } from './recover-refcounts.ts';
import { BAD_TABLE, type Tree } from './recover-trees.ts';

/** What is known of one L2 table. */
export interface TableFacts {
  readonly offset: number;
  /** L1 entries that name it. */
  refs: number;
  /** Of those, entries of the tree that is recovered; and the slot of the first. */
  own: number;
  slot: number;
  /** COPIED of that L1 entry. */
  copied: boolean;
  /** Entries that map something, that no writer makes, and that map nothing. */
  mapped: number;
  bad: number;
  empty: number;
  /** Most of it is no table: nothing in it counts. */
  garbage: boolean;
  /** It claims the first cluster behind its own place that is no metadata. */
  atHome: boolean;
  /** All that it alone claims lies behind it: as it is where no freed cluster was ever used again. */
  behind: boolean;
  /** Nothing in it contradicts anything. */
  clean: boolean;
  /** Claims that others have, too, beyond what is counted. */
  contested: number;
}

/** A bitmap of more entries is not counted. */
const MAX_BITMAP_TABLE = 1_048_576;
/** Metadata clusters that are stepped over at once. */
const MAX_STEP = 4096;

export class Books {
  /** How often each host cluster is claimed by what was found. */
  readonly claims = new ClusterCounts();
  /** Clusters of tables, header, refcounts: no data. */
  readonly metadata = new ClusterCounts();
  /** Tables whose clusters hold anything: no more than the file has room for, whatever L1 tables claim. */
  readonly tables = new Map<number, TableFacts>();
  /** L1 entries that name clusters of zeros. */
  blanks = 0;
  /** Of neighbouring entries that both have data, those whose data are neighbours, too. */
  sequential = 0;
  adjacent = 0;
  compressed = -1;
  readonly #file: BlockNode;
  readonly #held: ClusterCounts;
  readonly #rules: EntryRules;
  readonly #evidence: Evidence;
  readonly #options: JobOptions;
  readonly #pacer = new Pacer();

  /** @param held clusters with anything but zeros */
  constructor(file: BlockNode, rules: EntryRules, evidence: Evidence, held: ClusterCounts, options: JobOptions) {
    this.#file = file;
    this.#held = held;
    this.#rules = rules;
    this.#evidence = evidence;
    this.#options = options;
  }

  /** Counts `bytes` from `offset` on as metadata. */
  addMetadata(offset: number, bytes: number): void {
    const { clusterSize } = this.#rules.geometry;
    const end = Math.min(Math.ceil((offset + bytes) / clusterSize), Math.ceil(this.#rules.fileSize / clusterSize));
    for (let cluster = Math.floor(offset / clusterSize); cluster < end; cluster++) {
      this.claims.add(cluster, 1);
      this.metadata.add(cluster, 1);
    }
  }

  /** Counts what persistent bitmaps occupy. @returns whether they could be read. */
  async addBitmaps(header: Qcow2Header, name: string): Promise<boolean> {
    const { bitmaps, virtualSize } = header;
    const { clusterSize } = this.#rules.geometry;
    if (bitmaps === undefined) return true;
    this.addMetadata(bitmaps.directoryOffset, bitmaps.directorySize);
    try {
      for (const { tableOffset, tableSize } of await readBitmapDirectory(
        this.#file,
        bitmaps,
        virtualSize,
        clusterSize,
        name,
      )) {
        if (tableSize > MAX_BITMAP_TABLE || tableOffset >= this.#rules.fileSize) return false;
        this.addMetadata(tableOffset, tableSize * 8);
        const bytes = new Uint8Array(tableSize * 8);
        await this.#file.read(tableOffset, bytes);
        const view = new DataView(bytes.buffer);
        for (let index = 0; index < tableSize; index++) {
          const offset = bitmapClusterAt(view, index, clusterSize);
          if (offset === undefined) return false;
          if (offset > 0) this.addMetadata(offset, clusterSize);
        }
      }
    } catch {
      // Damaged bitmaps are not part of the disk; what they occupied stays unexplained.
      return false;
    }
    return true;
  }

  /** Notes every table that a tree names. @param own it is the tree that is recovered */
  noteTree(tree: Tree, own: boolean): void {
    for (let slot = 0; slot < tree.tables.length; slot++) {
      const offset = tree.tables[slot] as number;
      if (offset > 0 && offset !== BAD_TABLE) this.note(offset, slot, own, tree.copied[slot] === 1);
    }
  }

  note(offset: number, slot: number, own: boolean, copied: boolean): void {
    const cluster = offset / this.#rules.geometry.clusterSize;
    if (this.#held.get(cluster) === 0) {
      this.blanks++;
      this.claims.add(cluster, 1);
      this.metadata.add(cluster, 1);
      return;
    }
    let facts = this.tables.get(offset);
    if (facts === undefined) {
      facts = newFacts(offset);
      this.tables.set(offset, facts);
    }
    facts.refs++;
    if (!own) return;
    if (facts.own === 0) {
      facts.slot = slot;
      facts.copied = copied;
    }
    facts.own++;
  }

  /** What is known of the table at `offset`; of one of zeros, that it is one. `undefined`: nothing names it. */
  factsOf(offset: number): TableFacts | undefined {
    const known = this.tables.get(offset);
    if (known !== undefined || offset <= 0) return known;
    if (this.#held.get(offset / this.#rules.geometry.clusterSize) > 0) return undefined;
    return { ...newFacts(offset), empty: this.#rules.geometry.l2Entries };
  }

  /** Reads the tables at `offsets` and counts what they claim. */
  async count(offsets: Iterable<number>): Promise<void> {
    const { clusterSize } = this.#rules.geometry;
    const reader = new EntryReader(this.#rules);
    for (const offset of offsets) {
      const facts = this.tables.get(offset) as TableFacts;
      this.claims.add(offset / clusterSize, facts.refs);
      this.metadata.add(offset / clusterSize, 1);
      const view = await this.#read(offset);
      this.#countEntries(reader, view, facts);
    }
  }

  #countEntries(reader: EntryReader, view: DataView, facts: TableFacts): void {
    const { geometry, dataFile } = this.#rules;
    const { clusterSize, l2EntrySize, l2Entries, l2Coverage } = geometry;
    const guest = facts.own > 0 ? facts.slot * l2Coverage : -1;
    let last = -1;
    for (let i = 0; i < l2Entries; i++) {
      const kind = reader.read(view, i * l2EntrySize, guest < 0 ? -1 : guest + i * clusterSize);
      if (kind === BAD) facts.bad++;
      else if (kind === NONE) facts.empty++;
      else if (kind === DATA || kind === ENCODED || reader.host >= 0) facts.mapped++;
      if (kind === DATA && last >= 0) {
        this.adjacent++;
        if (reader.host > last && reader.host - last <= 4 * clusterSize) this.sequential++;
      }
      last = kind === DATA ? reader.host : -1;
      if (kind === ENCODED && this.compressed < 0) this.compressed = reader.host;
    }
    facts.garbage = facts.bad > facts.mapped;
    if (facts.garbage || dataFile) return;
    for (let i = 0; i < l2Entries; i++) {
      if (reader.read(view, i * l2EntrySize, -1) === BAD) continue;
      for (let cluster = reader.first; cluster <= reader.last; cluster++) this.claims.add(cluster, facts.refs);
    }
  }

  /** Compares every table with the counts; all claims have been made. */
  async compare(ownIsDisk: boolean): Promise<void> {
    const reader = new EntryReader(this.#rules);
    for (const facts of this.tables.values()) {
      if (facts.garbage) continue;
      const view = await this.#read(facts.offset);
      this.#compareEntries(reader, view, facts, ownIsDisk);
    }
  }

  #compareEntries(reader: EntryReader, view: DataView, facts: TableFacts, ownIsDisk: boolean): void {
    const { geometry, dataFile } = this.#rules;
    const { clusterSize, l2EntrySize, l2Entries, l2Coverage } = geometry;
    const home = this.homeOf(facts.offset);
    const checksCopied = ownIsDisk && facts.own > 0;
    const guest = dataFile && facts.own > 0 ? facts.slot * l2Coverage : -1;
    let wrong = facts.bad > 0 || facts.mapped === 0 || !this.#placeAgrees(facts, checksCopied) ? 1 : 0;
    facts.atHome = dataFile && guest >= 0 && facts.mapped > 0 && facts.bad === 0;
    facts.contested = 0;
    facts.behind = true;
    for (let i = 0; i < l2Entries; i++) {
      const kind = reader.read(view, i * l2EntrySize, guest < 0 ? -1 : guest + i * clusterSize);
      if (kind === BAD || reader.host < 0 || dataFile) continue;
      if (!this.agrees(reader, checksCopied)) wrong++;
      for (let cluster = reader.first; cluster <= reader.last; cluster++) {
        if (cluster === home) facts.atHome = true;
        if (reader.host < facts.offset && this.#evidence.of(cluster) <= facts.refs) facts.behind = false;
        const count = this.#evidence.of(cluster);
        const claims = this.claims.get(cluster);
        if (count === UNKNOWN ? claims > facts.refs && kind !== ENCODED : claims > count) facts.contested++;
      }
    }
    facts.clean = wrong === 0;
  }

  /** The table's own cluster: counted as often as it is named, and flagged so. */
  #placeAgrees(facts: TableFacts, checksCopied: boolean): boolean {
    const cluster = facts.offset / this.#rules.geometry.clusterSize;
    const count = this.#evidence.of(cluster);
    if (count === UNKNOWN || count !== this.claims.get(cluster)) return false;
    return !checksCopied || facts.copied === (count === 1);
  }

  /** An entry that names clusters: they are counted exactly as often as they are claimed, and flagged so. */
  agrees(entry: EntryReader, checksCopied: boolean): boolean {
    let fine = true;
    let single = true;
    for (let cluster = entry.first; cluster <= entry.last; cluster++) {
      const count = this.#evidence.of(cluster);
      if (count === UNKNOWN || count !== this.claims.get(cluster)) fine = false;
      if (count !== 1) single = false;
    }
    if (!fine || !checksCopied || entry.kind === ENCODED) return fine;
    return entry.copied === single;
  }

  /** The first cluster behind a table that is no metadata: writers put there what made the table necessary. */
  homeOf(offset: number): number {
    let cluster = offset / this.#rules.geometry.clusterSize + 1;
    for (let i = 0; i < MAX_STEP && this.metadata.get(cluster) > 0; i++) cluster++;
    return cluster;
  }

  /** A cluster that is counted more often than anything claims it; where counts are lost: that holds something, and nothing claims it. */
  isLeftOver(cluster: number): boolean {
    const count = this.#evidence.of(cluster);
    return count === UNKNOWN
      ? this.#held.get(cluster) > 0 && this.claims.get(cluster) === 0
      : count > this.claims.get(cluster);
  }

  /** Clusters that are counted and not claimed. */
  countLeftOver(): number {
    let left = 0;
    for (const [cluster, count] of this.#evidence.counted()) if (count > this.claims.get(cluster)) left++;
    return left;
  }

  /** Whether some cluster in the middle of the file is free: then clusters have been freed, and may have been used again. */
  get hasFree(): boolean {
    let last = -1;
    for (const [cluster] of this.#evidence.counted()) {
      if (cluster > last + 1 && (this.#evidence.of(last + 1) === 0 || this.#evidence.of(cluster - 1) === 0))
        return true;
      last = cluster;
    }
    return false;
  }

  /** Clusters that hold something and are neither counted nor claimed: freed ones, or such whose counts are lost. */
  countUncounted(): number {
    let left = 0;
    for (const [cluster] of this.#held.entries()) {
      if (this.#evidence.of(cluster) === 0 && this.claims.get(cluster) === 0) left++;
    }
    return left;
  }

  async #read(offset: number): Promise<DataView> {
    const bytes = new Uint8Array(this.#rules.geometry.clusterSize);
    const reading = this.#file.read(offset, bytes);
    if (reading !== undefined) await reading;
    if (this.#pacer.due) await this.#pacer.pause(this.#options.signal);
    else throwIfAborted(this.#options.signal);
    return new DataView(bytes.buffer);
  }
}

function newFacts(offset: number): TableFacts {
  return {
    offset,
    refs: 0,
    own: 0,
    slot: -1,
    copied: false,
    mapped: 0,
    bad: 0,
    empty: 0,
    garbage: false,
    atHome: false,
    behind: false,
    clean: false,
    contested: 0,
  };
}
