/** Recovers what it can of a qcow2 image whose metadata are damaged: header → scan → trees → books → orphans → verdict.
 *  Spec: qcow2. What the states mean, and which damage can pass unseen: docs/decisions.
 *  Invariant: nothing is written; what was found first is never given up for what is only likely. */
import { BlockError } from '../../base/errors.ts';
import type { CompressionType } from '../../codec/codecs.ts';
import type { FormatNode, OpenContext } from '../../core/format.ts';
import type { BlockNode } from '../../core/node.ts';
import type { RecoveryRequest } from '../../core/recovery.ts';
import { AUTOCLEAR } from './features.ts';
import { type Geometry, l1EntriesFor, MAX_L1_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import { hasDataFile } from './header.ts';
import { assign, type Slots, type Surroundings } from './recover-assign.ts';
import { Books } from './recover-books.ts';
import { BAD, EntryReader, type EntryRules, NONE } from './recover-entries.ts';
import { type Frame, findFrame } from './recover-header.ts';
import { matchSlots } from './recover-match.ts';
import { RecoveredQcow2 } from './recover-node.ts';
import { Evidence, UNKNOWN } from './recover-refcounts.ts';
import { type Found, scan } from './recover-scan.ts';
import { BAD_TABLE, discredit, findTrees, likeliestActive, readTrees, type Tree, type Trees } from './recover-trees.ts';
import { type Overall, Verdict } from './recover-verdict.ts';
import { requireSnapshot } from './snapshot-entries.ts';

/** @throws {@link BlockError} UNSUPPORTED `qcow2.recover-encrypted`; CORRUPT `qcow2.recover-cluster-size`, `qcow2.recover-nothing`; TOO_LARGE
 *  `qcow2.recover-memory`, `qcow2.recover-size`; NOT_FOUND `qcow2.snapshot-missing`. */
export async function recoverQcow2(context: OpenContext, request: RecoveryRequest): Promise<FormatNode> {
  return await new Recovery(context, request).run();
}

/** What the recovered content hangs from. */
interface Chosen {
  readonly own: Tree | undefined;
  readonly others: readonly Tree[];
  readonly virtualSize: number | undefined;
  readonly ownIsDisk: boolean;
  /** The header names another L1 table. */
  readonly isStale: boolean;
}

class Recovery {
  readonly #context: OpenContext;
  readonly #request: RecoveryRequest;
  readonly #notes: string[] = [];

  constructor(context: OpenContext, request: RecoveryRequest) {
    this.#context = context;
    this.#request = request;
  }

  async run(): Promise<FormatNode> {
    const { file, name } = this.#context;
    const frame = await findFrame(this.#context, this.#request, this.#notes);
    const { geometry, header } = frame;
    const rules = { geometry, version: frame.version, fileSize: file.size, dataFile: frame.dataFile };
    const dataFile = await this.#openDataFile(frame);
    const backing = await this.#openBacking(frame);
    const found = await scan(file, rules, this.#request);
    const evidence = new Evidence(file, geometry);
    await evidence.load(header, found.refcountBlocks, this.#notes, this.#request);
    const trees =
      header === undefined
        ? { active: undefined, snapshots: [], snapshotTableBytes: 0, snapshotsLost: true }
        : this.#credible(await readTrees(file, header, geometry, name, this.#notes), found, geometry);
    const books = new Books(file, rules, evidence, found.held, this.#request);
    const bitmapsWhole = await this.#countStructures(books, frame, trees, evidence);
    const hints = await this.#hints(trees, found, books, geometry);
    const isCounted = (tree: Tree): boolean => evidence.raw(tree.l1Offset / geometry.clusterSize) > 0;
    const chosen = this.#choose(frame, trees, hints, isCounted);
    await this.#countTrees(books, chosen, frame);
    evidence.judge(books.claims);
    const orphans = this.#orphans(found, books, evidence, [chosen.own, ...hints], geometry);
    for (const offset of orphans) books.note(offset, -1, false, false);
    await books.count(orphans);
    evidence.judge(books.claims);
    const around: Surroundings = {
      geometry,
      books,
      evidence,
      clusters: found.held.end,
    };
    const slots = assign(
      {
        own: chosen.own,
        others: chosen.others,
        hints,
        orphans,
        matches: await matchSlots(orphans, chosen.others, { file, rules, books, options: this.#request }),
        fillsGaps: fillsGaps(chosen, trees),
      },
      slotsOf(chosen.virtualSize, geometry, name),
      around,
    );
    this.#placeOrphans(slots, orphans, books);
    await books.compare(chosen.ownIsDisk);
    const virtualSize = chosen.virtualSize ?? (await this.#reach(slots, rules, books));
    const overall = this.#overall({
      frame,
      trees,
      books,
      evidence,
      chosen,
      orphans,
      bitmapsWhole,
      backing,
      slots,
    });
    this.#tell(overall, orphans, evidence);
    // What is in a data file needs no table to be found.
    if (overall.rawData || (frame.dataFile && !overall.l1Whole)) {
      slots.tables.forEach((table, slot) => {
        if (table === 0) slots.tables[slot] = BAD_TABLE;
      });
    }
    return new RecoveredQcow2({
      file,
      dataFile,
      backing,
      name,
      rules,
      verdict: new Verdict({
        file,
        rules,
        books,
        evidence,
        slots,
        others: chosen.others,
        overall,
        virtualSize,
      }),
      tables: slots.tables,
      virtualSize,
      compression: await this.#compression(frame, books, file),
      codecs: this.#context.codecs,
      notes: this.#notes,
      request: this.#request,
    });
  }

  async #openDataFile({ header }: Frame): Promise<BlockNode | undefined> {
    if (header === undefined || !hasDataFile(header)) return undefined;
    if (header.dataFile === undefined) {
      throw new BlockError('CORRUPT', `qcow2 "${this.#context.name}": needs an external data file and names none`, {
        reason: 'qcow2.data-file-missing',
      });
    }
    return await this.#context.openReference({ role: 'data', name: header.dataFile, readOnly: true });
  }

  async #openBacking({ header }: Frame): Promise<BlockNode | undefined> {
    const { backing } = this.#request;
    const recorded = header?.backingFile;
    if (backing === 'none') {
      if (recorded !== undefined) this.#notes.push(`the backing file "${recorded}" is left out, as asked`);
      return undefined;
    }
    if (recorded === undefined && backing === 'recorded') return undefined;
    return await this.#context.openReference({
      role: 'backing',
      name: recorded ?? '',
      format: header?.backingFormat,
      readOnly: true,
    });
  }

  /** Everything that is no L2 table. */
  async #countStructures(books: Books, frame: Frame, trees: Trees, evidence: Evidence): Promise<boolean> {
    const { header, geometry } = frame;
    const { clusterSize } = geometry;
    books.addMetadata(0, clusterSize);
    for (const offset of evidence.blocks) books.addMetadata(offset, clusterSize);
    if (header === undefined) return true;
    books.addMetadata(header.refcountTableOffset, header.refcountTableClusters * clusterSize);
    if (trees.active !== undefined) books.addMetadata(header.l1Offset, header.l1Size * TABLE_ENTRY_BYTES);
    for (const { tree } of trees.snapshots) {
      books.addMetadata(tree.l1Offset, tree.tables.length * TABLE_ENTRY_BYTES);
    }
    if (trees.snapshotTableBytes > 0) books.addMetadata(header.snapshotsOffset, trees.snapshotTableBytes);
    return await books.addBitmaps(header, this.#context.name);
  }

  /** L1 tables that nobody names. They matter only where tables may be without a slot. */
  async #hints(trees: Trees, found: Found, books: Books, geometry: Geometry): Promise<Tree[]> {
    const unnamed = new Set(found.tables);
    for (const tree of [trees.active, ...trees.snapshots.map((one) => one.tree)]) {
      for (const offset of tree?.tables ?? []) unnamed.delete(offset);
    }
    if (trees.active !== undefined && unnamed.size === 0) return [];
    const known = new Set([trees.active?.l1Offset, ...trees.snapshots.map(({ tree }) => tree.l1Offset)]);
    const { tables, refcountBlocks } = found;
    const more = await findTrees(this.#context.file, geometry, tables, refcountBlocks, this.#request);
    for (const offset of more.refcountTables) {
      if (books.claims.get(offset / geometry.clusterSize) === 0) books.addMetadata(offset, geometry.clusterSize);
    }
    return more.trees.filter(({ l1Offset }) => !known.has(l1Offset));
  }

  #choose(frame: Frame, trees: Trees, hints: Tree[], isCounted: (tree: Tree) => boolean): Chosen {
    const { snapshot } = this.#context;
    const inner = trees.snapshots.map(({ tree }) => tree);
    if (snapshot !== undefined) {
      const entry = requireSnapshot(
        trees.snapshots.map((one) => one.entry),
        snapshot,
        this.#context.name,
      );
      const own = trees.snapshots.find((one) => one.entry === entry)?.tree;
      const others = [...(trees.active === undefined ? [] : [trees.active]), ...inner.filter((tree) => tree !== own)];
      return { own, others, virtualSize: entry.diskSize, ownIsDisk: false, isStale: false };
    }
    const { active } = trees;
    const likely = likeliestActive(hints, isCounted);
    // The header itself may be an old one, whose L1 table is no longer in use.
    const isStale = active !== undefined && likely !== undefined && !isCounted(active) && isCounted(likely);
    if (active !== undefined && !isStale) {
      return { own: active, others: inner, virtualSize: frame.virtualSize, ownIsDisk: true, isStale };
    }
    if (isStale) this.#notes.push('the header is an old one: its L1 table is not in use');
    if (likely !== undefined) {
      hints.splice(hints.indexOf(likely), 1);
      this.#notes.push(`the L1 table at 0x${likely.l1Offset.toString(16)} is taken for that of the disk`);
    }
    return { own: likely, others: inner, virtualSize: frame.virtualSize, ownIsDisk: true, isStale };
  }

  async #countTrees(books: Books, { own, others }: Chosen, { header }: Frame): Promise<void> {
    if (own !== undefined) books.noteTree(own, true);
    for (const tree of others) books.noteTree(tree, false);
    if (header === undefined && own !== undefined) {
      books.addMetadata(own.l1Offset, Math.min(own.tables.length * TABLE_ENTRY_BYTES, MAX_L1_BYTES));
    }
    await books.count([...books.tables.keys()]);
  }

  #credible(trees: Trees, found: Found, geometry: Geometry): Trees {
    const tables = new Set(found.tables);
    const isHeld = (offset: number): boolean => found.held.get(offset / geometry.clusterSize) > 0;
    const tested = (tree: Tree): Tree => discredit(tree, geometry, (offset) => tables.has(offset), isHeld);
    return {
      ...trees,
      active: trees.active === undefined ? undefined : tested(trees.active),
      snapshots: trees.snapshots.map(({ entry, tree }) => ({ entry, tree: tested(tree) })),
    };
  }

  /** What looks like an L2 table, is counted, and is named and claimed by nobody. */
  #orphans(
    { tables, held }: Found,
    books: Books,
    evidence: Evidence,
    trees: readonly (Tree | undefined)[],
    geometry: Geometry,
  ): number[] {
    const orphans: number[] = [];
    const isL1 = (offset: number): boolean =>
      trees.some(
        (tree) =>
          tree !== undefined &&
          offset >= tree.l1Offset &&
          offset < tree.l1Offset + tree.tables.length * TABLE_ENTRY_BYTES,
      );
    for (const offset of tables) {
      const cluster = offset / geometry.clusterSize;
      if (books.tables.has(offset) || books.claims.get(cluster) > 0) continue;
      const count = evidence.of(cluster);
      if (count === 0 || (count === UNKNOWN && held.get(cluster) === 0)) continue;
      if (!isL1(offset)) orphans.push(offset);
    }
    return orphans;
  }

  #placeOrphans({ tables }: Slots, orphans: readonly number[], books: Books): void {
    const known = new Set(orphans);
    for (let slot = 0; slot < tables.length; slot++) {
      const facts = books.tables.get(tables[slot] as number);
      if (facts === undefined || !known.has(facts.offset)) continue;
      facts.slot = slot;
      facts.own = 1;
    }
  }

  /** Where the last table's last mapped cluster ends. */
  async #reach({ tables }: Slots, rules: EntryRules, books: Books): Promise<number> {
    const { l2Coverage, l2Entries, l2EntrySize, clusterSize } = rules.geometry;
    const reader = new EntryReader(rules);
    const bytes = new Uint8Array(clusterSize);
    this.#notes.push('the size of the disk is lost; it is taken to end with the last cluster that is mapped');
    for (let slot = tables.length - 1; slot >= 0; slot--) {
      const offset = tables[slot] as number;
      const facts = books.factsOf(offset);
      if (offset === 0 || (facts !== undefined && facts.refs === 0)) continue;
      if (facts === undefined || facts.garbage) return (slot + 1) * l2Coverage;
      await this.#context.file.read(offset, bytes);
      const view = new DataView(bytes.buffer);
      for (let i = l2Entries - 1; i >= 0; i--) {
        const kind = reader.read(view, i * l2EntrySize, -1);
        if (kind !== NONE && kind !== BAD) return slot * l2Coverage + (i + 1) * clusterSize;
      }
    }
    throw new BlockError('CORRUPT', `qcow2 "${this.#context.name}": nothing of the disk is left that could be found`, {
      reason: 'qcow2.recover-nothing',
    });
  }

  #overall(all: {
    readonly frame: Frame;
    readonly trees: Trees;
    readonly books: Books;
    readonly evidence: Evidence;
    readonly chosen: Chosen;
    readonly orphans: readonly number[];
    readonly bitmapsWhole: boolean;
    readonly backing: BlockNode | undefined;
    readonly slots: Slots;
  }): Overall {
    const { frame, trees, books, evidence, chosen, orphans, bitmapsWhole, backing } = all;
    const { l2Entries } = frame.geometry;
    let explained = books.blanks * l2Entries;
    let sound = bitmapsWhole && !trees.snapshotsLost;
    for (const facts of books.tables.values()) {
      const destroyed = facts.garbage || facts.bad > 0 || (facts.mapped === 0 && facts.empty === l2Entries);
      if (destroyed) explained += l2Entries - (facts.garbage ? 0 : facts.mapped);
      if (facts.garbage || facts.bad > 0 || !(facts.clean || facts.mapped === 0)) sound = false;
    }
    if (trees.snapshotsLost || !bitmapsWhole) explained = Number.POSITIVE_INFINITY;
    const { header } = frame;
    const uncounted = books.countUncounted();
    const raw = header !== undefined && frame.dataFile && (header.autoclear & AUTOCLEAR.dataFileRaw) !== 0n;
    return {
      headerWhole:
        header !== undefined &&
        !chosen.isStale &&
        (this.#request.options['size'] === undefined || chosen.virtualSize === header.virtualSize || !chosen.ownIsDisk),
      l1Whole: this.#l1Whole(chosen, books, evidence, orphans, frame.geometry),
      countsWhole: evidence.tableWhole && evidence.complete,
      leftOver: books.countLeftOver(),
      explained,
      uncounted,
      freed: uncounted > 0 || books.hasFree,
      sound,
      rawData: raw,
      hasBacking: backing !== undefined || (header?.backingFile !== undefined && this.#request.backing !== 'none'),
      ownIsDisk: chosen.ownIsDisk,
    };
  }

  /** Every entry can be meant, the table's own clusters are counted once, and no table in use is without a slot. */
  #l1Whole(
    { own }: Chosen,
    books: Books,
    evidence: Evidence,
    orphans: readonly number[],
    { clusterSize }: Geometry,
  ): boolean {
    if (own === undefined || own.bad > 0 || orphans.length > 0) return false;
    const end = Math.ceil((own.l1Offset + own.tables.length * TABLE_ENTRY_BYTES) / clusterSize);
    for (let cluster = own.l1Offset / clusterSize; cluster < end; cluster++) {
      const count = evidence.of(cluster);
      if (count === UNKNOWN || count !== books.claims.get(cluster)) return false;
    }
    return true;
  }

  #tell(overall: Overall, orphans: readonly number[], evidence: Evidence): void {
    const { leftOver, uncounted, l1Whole, headerWhole } = overall;
    if (!l1Whole && headerWhole)
      this.#notes.push('the L1 table is damaged, or tables that it should name are without a place');
    if (orphans.length > 0) this.#notes.push(`${orphans.length} L2 tables are named by nobody`);
    if (!evidence.complete) this.#notes.push('refcount blocks are lost');
    if (leftOver > 0) this.#notes.push(`${leftOver} clusters are counted and belong to nothing`);
    if (uncounted > 0)
      this.#notes.push(`${uncounted} clusters hold something and are not counted: freed, or their counts are lost`);
  }

  async #compression({ compression }: Frame, books: Books, file: BlockNode): Promise<CompressionType> {
    if (compression !== undefined) return compression;
    if (books.compressed < 0) return 'deflate';
    const head = new Uint8Array(4);
    await file.read(books.compressed, head);
    return new DataView(head.buffer).getUint32(0) === ZSTD_MAGIC ? 'zstd' : 'deflate';
  }
}

/** As the first bytes of a frame read. */
const ZSTD_MAGIC = 0x28b5_2ffd;

/** Whether tables without a slot are the disk's, so that slots without a table may have lost theirs: not, when they may be those of a snapshot. */
function fillsGaps({ own, ownIsDisk }: Chosen, { active, snapshotsLost }: Trees): boolean {
  if (ownIsDisk) return !snapshotsLost || active === undefined;
  return own !== undefined && own.bad > 0 && active !== undefined && active.bad === 0;
}

/** @throws TOO_LARGE, reason `qcow2.recover-size`. */
function slotsOf(virtualSize: number | undefined, geometry: Geometry, name: string): number {
  if (virtualSize === undefined) return Number.POSITIVE_INFINITY;
  const slots = l1EntriesFor(geometry, virtualSize);
  if (slots <= MAX_L1_BYTES / TABLE_ENTRY_BYTES) return slots;
  throw new BlockError(
    'TOO_LARGE',
    `qcow2 "${name}": a disk of ${virtualSize} bytes is more than clusters of ${geometry.clusterSize} bytes can map`,
    { reason: 'qcow2.recover-size', details: { virtualSize } },
  );
}
