/** What is known of each guest cluster of one slot, and why. Spec: qcow2, "Cluster mapping"; the meaning of the states: docs/decisions.
 *  Invariant: `certain` is said only of an entry of a clean table that a whole L1 table of a whole header names, and only while nothing in the file is
 *  left unexplained that this table could have lost. */
import { alignUp } from '../../bytes/align.ts';
import type { BlockNode } from '../../core/node.ts';
import type { RecoveryState } from '../../core/recovery.ts';
import { ALL_SUBCLUSTERS } from './entries.ts';
import { BY_CONTENT, BY_ORDER, BY_OTHER_L1, BY_SNAPSHOT, type Slots } from './recover-assign.ts';
import type { Books, TableFacts } from './recover-books.ts';
import { BAD, DATA, ENCODED, EntryReader, type EntryRules, NONE, ZERO } from './recover-entries.ts';
import { type Evidence, UNKNOWN } from './recover-refcounts.ts';
import type { Tree } from './recover-trees.ts';

export const STATES: readonly RecoveryState[] = ['certain', 'doubtful', 'lost'];
export const CERTAIN = 0;
export const DOUBTFUL = 1;
export const LOST = 2;

/** Reasons; their place in the list is what a view holds. */
export const WHYS = [
  'intact',
  'header-lost',
  'l1-damaged',
  'table-lost',
  'table-damaged',
  'table-blank',
  'table-elsewhere',
  'entry-damaged',
  'refcount-lost',
  'refcount-differs',
  'left-over',
  'clusters-reused',
  'l1-of-snapshot',
  'l1-of-old',
  'content-of-table',
  'order-of-tables',
  'order-of-clusters',
  'table-of-snapshot',
  'data-file',
  'left-out',
] as const;
export type Why = (typeof WHYS)[number];

/** What holds for the whole image. */
export interface Overall {
  readonly headerWhole: boolean;
  readonly l1Whole: boolean;
  readonly countsWhole: boolean;
  /** Clusters that are counted and not claimed. */
  readonly leftOver: number;
  /** Guest clusters that destroyed tables could have mapped: so many left-over clusters are no surprise. */
  readonly explained: number;
  /** Clusters have been freed: a table that names one of them may be an older version of itself. */
  readonly freed: boolean;
  /** Clusters that hold something, and are neither counted nor claimed. */
  readonly uncounted: number;
  /** Nothing found anywhere contradicts anything. */
  readonly sound: boolean;
  readonly hasBacking: boolean;
  readonly ownIsDisk: boolean;
  /** Every byte of the disk is at its own offset in the data file, whatever the tables say. */
  readonly rawData: boolean;
}

/** One slot's guest clusters. */
export class SlotView {
  readonly kind: Uint8Array;
  readonly host: Float64Array;
  readonly length: Int32Array;
  readonly state: Uint8Array;
  readonly why: Uint8Array;
  readonly allocated: Uint32Array | undefined;
  readonly zero: Uint32Array | undefined;

  constructor(clusters: number, extended: boolean) {
    this.kind = new Uint8Array(clusters);
    this.host = new Float64Array(clusters);
    this.length = new Int32Array(clusters);
    this.state = new Uint8Array(clusters);
    this.why = new Uint8Array(clusters);
    this.allocated = extended ? new Uint32Array(clusters) : undefined;
    this.zero = extended ? new Uint32Array(clusters) : undefined;
  }

  get clusters(): number {
    return this.kind.length;
  }

  say(i: number, state: number, why: Why): void {
    this.state[i] = state;
    this.why[i] = WHYS.indexOf(why);
  }

  take(i: number, entry: EntryReader): void {
    this.kind[i] = entry.kind;
    this.host[i] = entry.host;
    this.length[i] = entry.length;
    if (this.allocated !== undefined) this.allocated[i] = entry.allocated;
    if (this.zero !== undefined) this.zero[i] = entry.zero;
  }

  lose(i: number, why: Why): void {
    this.kind[i] = NONE;
    this.host[i] = -1;
    if (this.allocated !== undefined) this.allocated[i] = 0;
    if (this.zero !== undefined) this.zero[i] = 0;
    this.say(i, LOST, why);
  }

  /** All data of one cluster, from `host` on. */
  set(i: number, host: number, why: Why): void {
    this.kind[i] = DATA;
    this.host[i] = host;
    this.length[i] = 0;
    if (this.allocated !== undefined) this.allocated[i] = ALL_SUBCLUSTERS;
    if (this.zero !== undefined) this.zero[i] = 0;
    this.say(i, DOUBTFUL, why);
  }
}

export interface VerdictParts {
  readonly file: BlockNode;
  readonly rules: EntryRules;
  readonly books: Books;
  readonly evidence: Evidence;
  readonly slots: Slots;
  readonly others: readonly Tree[];
  readonly overall: Overall;
  readonly virtualSize: number;
}

export class Verdict {
  readonly #parts: VerdictParts;

  constructor(parts: VerdictParts) {
    this.#parts = parts;
  }

  /** A slot without a table of any kind: the whole of it says the same. */
  emptySlot(): { readonly state: number; readonly why: Why } {
    const { overall } = this.#parts;
    if (this.#holesHold) return { state: CERTAIN, why: 'intact' };
    if (!overall.headerWhole) return { state: DOUBTFUL, why: 'header-lost' };
    if (!overall.l1Whole) return { state: LOST, why: 'l1-damaged' };
    return { state: DOUBTFUL, why: this.#openWhy() };
  }

  /** Nothing in the file is left that an unmapped range could have had. */
  get #holesHold(): boolean {
    const { headerWhole, l1Whole, countsWhole, leftOver, uncounted, sound } = this.#parts.overall;
    return headerWhole && l1Whole && countsWhole && leftOver === 0 && uncounted === 0 && sound;
  }

  #openWhy(): Why {
    const { headerWhole, l1Whole, countsWhole } = this.#parts.overall;
    if (!headerWhole) return 'header-lost';
    if (!l1Whole) return 'l1-damaged';
    return countsWhole ? 'left-over' : 'refcount-lost';
  }

  /** @param slot with a table, or one that is destroyed. */
  async view(slot: number): Promise<SlotView> {
    const { rules, slots, virtualSize } = this.#parts;
    const { clusterSize, l2Entries, l2Coverage, extendedL2 } = rules.geometry;
    const start = slot * l2Coverage;
    const clusters = Math.min(l2Entries, alignUp(virtualSize - start, clusterSize) / clusterSize);
    const view = new SlotView(clusters, extendedL2);
    const table = slots.tables[slot] as number;
    const facts = this.#parts.books.factsOf(table);
    if (facts === undefined || this.#isDestroyed(facts)) {
      const why = facts === undefined && table < 0 ? 'l1-damaged' : 'table-lost';
      for (let i = 0; i < clusters; i++) view.lose(i, why);
    } else await this.#fromTable(view, slot, facts);
    if (rules.dataFile) this.#fillFromDataFile(view, start);
    else {
      await this.#fillFromOthers(view, slot, table);
      if (facts === undefined || this.#isDestroyed(facts)) this.#fillByOrder(view, table);
    }
    return view;
  }

  /** The table's cluster no longer holds it: garbage, zeros while clusters are missing their owner, or what is the content of another one. */
  #isDestroyed(facts: TableFacts): boolean {
    const { books, rules, overall } = this.#parts;
    if (facts.garbage) return true;
    if (facts.mapped === 0 && facts.empty === rules.geometry.l2Entries)
      return overall.leftOver > 0 || !overall.countsWhole;
    const foreign = facts.contested * 2 > facts.mapped && !facts.atHome;
    return foreign && books.isLeftOver(books.homeOf(facts.offset));
  }

  async #fromTable(view: SlotView, slot: number, facts: TableFacts): Promise<void> {
    const { rules, file, books, overall, slots } = this.#parts;
    const { l2EntrySize, clusterSize, l2Coverage } = rules.geometry;
    const reader = new EntryReader(rules);
    const bytes = new Uint8Array(clusterSize);
    const reading = file.read(facts.offset, bytes);
    if (reading !== undefined) await reading;
    const table = new DataView(bytes.buffer);
    const why = this.#tableWhy(facts, slots.how[slot] as number);
    const checksCopied = overall.ownIsDisk;
    const blank = facts.mapped === 0 && facts.bad === 0;
    for (let i = 0; i < view.clusters; i++) {
      const kind = reader.read(table, i * l2EntrySize, slot * l2Coverage + i * clusterSize);
      if (kind === BAD) {
        view.lose(i, 'entry-damaged');
        continue;
      }
      view.take(i, reader);
      const holds = kind === DATA || kind === ENCODED || (kind === ZERO && reader.host >= 0);
      if (kind === NONE || kind === ZERO) {
        if (kind === NONE && facts.bad > 0) view.lose(i, 'table-damaged');
        else if (why === 'intact' && this.#holesHold && !(blank && overall.hasBacking)) view.say(i, CERTAIN, 'intact');
        else if (blank && this.#holesHold && !overall.hasBacking) view.say(i, CERTAIN, 'intact');
        else view.say(i, DOUBTFUL, why === 'intact' ? this.#openWhy() : why);
      } else if (holds && !rules.dataFile && !books.agrees(reader, checksCopied)) {
        view.say(i, DOUBTFUL, this.#countWhy(reader));
      } else view.say(i, why === 'intact' ? CERTAIN : DOUBTFUL, why);
    }
  }

  /** Why entries of this table cannot be certain; `intact` when they can. */
  #tableWhy(facts: TableFacts, how: number): Why {
    const { overall } = this.#parts;
    if (how === BY_SNAPSHOT) return 'l1-of-snapshot';
    if (how === BY_OTHER_L1) return 'l1-of-old';
    if (how === BY_CONTENT) return 'content-of-table';
    if (how === BY_ORDER) return 'order-of-tables';
    if (!overall.headerWhole) return 'header-lost';
    if (!overall.l1Whole) return 'l1-damaged';
    if (facts.bad > 0) return 'table-damaged';
    if (facts.mapped === 0) return 'table-blank';
    if (!facts.clean)
      return this.#parts.evidence.of(facts.offset / this.#parts.rules.geometry.clusterSize) === UNKNOWN
        ? 'refcount-lost'
        : 'refcount-differs';
    const closed = overall.leftOver === 0 && overall.countsWhole && overall.sound;
    if (closed) return 'intact';
    if (overall.leftOver > overall.explained) return 'left-over';
    if (overall.freed || !facts.behind) return 'clusters-reused';
    return facts.atHome ? 'intact' : 'table-elsewhere';
  }

  #countWhy(entry: EntryReader): Why {
    const { evidence } = this.#parts;
    for (let cluster = entry.first; cluster <= entry.last; cluster++) {
      if (evidence.of(cluster) === UNKNOWN) return 'refcount-lost';
    }
    return 'refcount-differs';
  }

  /** Data files keep every guest cluster at its own offset. */
  #fillFromDataFile(view: SlotView, start: number): void {
    const { rules, overall } = this.#parts;
    const { clusterSize } = rules.geometry;
    for (let i = 0; i < view.clusters; i++) {
      if (view.state[i] !== LOST && !overall.rawData) continue;
      view.set(i, start + i * clusterSize, 'data-file');
      if (overall.rawData) view.say(i, CERTAIN, 'data-file');
    }
  }

  /** What a snapshot has at this place, and somebody else, too: that is the disk. */
  async #fillFromOthers(view: SlotView, slot: number, table: number): Promise<void> {
    const { books, others, rules, file, evidence } = this.#parts;
    if (!view.state.includes(LOST)) return;
    const { l2EntrySize, clusterSize } = rules.geometry;
    const reader = new EntryReader(rules);
    for (const { tables } of others) {
      const theirs = tables[slot] ?? 0;
      const facts = books.tables.get(theirs);
      if (facts === undefined || theirs === table || facts.garbage || facts.mapped === 0) continue;
      const bytes = new Uint8Array(clusterSize);
      const reading = file.read(theirs, bytes);
      if (reading !== undefined) await reading;
      const entries = new DataView(bytes.buffer);
      for (let i = 0; i < view.clusters; i++) {
        if (view.state[i] !== LOST) continue;
        const kind = reader.read(entries, i * l2EntrySize, -1);
        if (kind !== DATA && kind !== ENCODED) continue;
        const count = evidence.of(reader.first);
        if (count !== UNKNOWN && count <= books.claims.get(reader.first)) continue;
        view.take(i, reader);
        view.say(i, DOUBTFUL, 'table-of-snapshot');
      }
      if (!view.state.includes(LOST)) return;
    }
  }

  /** Where the whole image was written from front to back, exactly as many left-over clusters behind the table's place as it maps are its own. */
  #fillByOrder(view: SlotView, table: number): void {
    const { books, rules } = this.#parts;
    if (table <= 0 || books.sequential < 0.9 * books.adjacent || books.adjacent === 0) return;
    if (view.state.some((state) => state !== LOST)) return;
    const { clusterSize } = rules.geometry;
    const end = Math.ceil(rules.fileSize / clusterSize);
    const hosts: number[] = [];
    for (let cluster = table / clusterSize + 1; cluster < end && hosts.length < view.clusters; cluster++) {
      if (books.metadata.get(cluster) > 0) continue;
      if (books.claims.get(cluster) > 0 || !books.isLeftOver(cluster)) return;
      hosts.push(cluster * clusterSize);
    }
    if (hosts.length < view.clusters) return;
    hosts.forEach((host, i) => {
      view.set(i, host, 'order-of-clusters');
    });
  }
}
