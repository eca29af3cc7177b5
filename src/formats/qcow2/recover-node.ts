/** The recovered disk as a read-only node: maps by verdicts instead of by tables, and tells its ranges. Spec: qcow2, "Cluster mapping".
 *  Invariants: what is read and what is reported come from the same views; a bounded number of views is held. */
import type { Pending } from '../../base/async.ts';
import { BlockError, hex } from '../../base/errors.ts';
import { type JobOptions, Pacer } from '../../base/job.ts';
import { divFloor } from '../../bytes/align.ts';
import type { Codecs, CompressionType } from '../../codec/codecs.ts';
import type { FormatInfo, FormatNode } from '../../core/format.ts';
import type { BlockNode, Child } from '../../core/node.ts';
import type { RecoveredContent, RecoveredRange, RecoveryFacet, RecoveryRequest } from '../../core/recovery.ts';
import type { RunList } from '../../core/run.ts';
import { hasSubcluster } from './entries.ts';
import type { EntryRules } from './recover-entries.ts';
import { DATA, ENCODED, ZERO } from './recover-entries.ts';
import { DOUBTFUL, LOST, type SlotView, STATES, type Verdict, WHYS, type Why } from './recover-verdict.ts';

const VIEWS = 8;

export interface RecoveredParts {
  readonly file: BlockNode;
  readonly dataFile: BlockNode | undefined;
  readonly backing: BlockNode | undefined;
  readonly name: string;
  readonly rules: EntryRules;
  readonly verdict: Verdict;
  /** Host offset of each slot's table; 0: none. */
  readonly tables: Float64Array;
  readonly virtualSize: number;
  readonly compression: CompressionType;
  readonly codecs: Codecs;
  readonly notes: readonly string[];
  readonly request: RecoveryRequest;
}

export class RecoveredQcow2 implements FormatNode {
  readonly format = 'qcow2';
  readonly children: readonly Child[];
  readonly readOnly = true;
  readonly recurse = 'none';
  readonly unit: number;
  readonly zeroUnit: number;
  readonly virtualSize: number;
  readonly recovery: RecoveryFacet;
  readonly #parts: RecoveredParts;
  readonly #views = new Map<number, SlotView>();

  constructor(parts: RecoveredParts) {
    const { file, dataFile, backing, rules, virtualSize, notes } = parts;
    this.#parts = parts;
    this.unit = rules.geometry.clusterSize;
    this.zeroUnit = rules.geometry.subclusterSize;
    this.virtualSize = virtualSize;
    const children: Child[] = [{ role: 'file', name: 'file', node: file }];
    if (dataFile !== undefined) children.push({ role: 'data', name: 'data-file', node: dataFile });
    if (backing !== undefined) children.push({ role: 'backing', name: 'backing', node: backing });
    this.children = children;
    this.recovery = { notes, ranges: (options) => this.#ranges(options) };
  }

  // ---- reading -------------------------------------------------------------------------------------------------------------------

  map(offset: number, _length: number, into: RunList): Pending {
    const { rules, tables } = this.#parts;
    const { l2Coverage } = rules.geometry;
    const slot = divFloor(offset, l2Coverage);
    if ((tables[slot] ?? 0) === 0) {
      this.#pushEmpty(this.#parts.verdict.emptySlot().state, l2Coverage - (offset % l2Coverage), into);
      return undefined;
    }
    const view = this.#views.get(slot);
    if (view !== undefined) {
      this.#push(view, slot, offset, into);
      return undefined;
    }
    return this.#load(slot).then((loaded) => this.#push(loaded, slot, offset, into));
  }

  async #load(slot: number): Promise<SlotView> {
    const known = this.#views.get(slot);
    if (known !== undefined) return known;
    const view = await this.#parts.verdict.view(slot);
    if (this.#parts.request.doubtful === 'leave-out') leaveOut(view);
    const [oldest] = this.#views.keys();
    if (this.#views.size >= VIEWS && oldest !== undefined) this.#views.delete(oldest);
    this.#views.set(slot, view);
    return view;
  }

  #pushEmpty(state: number, length: number, into: RunList): boolean {
    const zero = (state === LOST || (state === DOUBTFUL && this.#leavesOut)) && this.#parts.request.lost === 'zero';
    return into.push(zero ? 'zero' : 'unallocated', length, 0, -1, false);
  }

  get #leavesOut(): boolean {
    return this.#parts.request.doubtful === 'leave-out';
  }

  #push(view: SlotView, slot: number, offset: number, into: RunList): void {
    const { rules, dataFile } = this.#parts;
    const { clusterSize, l2Coverage } = rules.geometry;
    const child = dataFile === undefined ? 0 : 1;
    const start = slot * l2Coverage;
    for (let i = divFloor(offset - start, clusterSize); i < view.clusters; i++) {
      const skip = Math.max(0, offset - start - i * clusterSize);
      const span = clusterSize - skip;
      const host = view.host[i] as number;
      let more: boolean;
      if (view.state[i] === LOST) more = this.#pushEmpty(LOST, span, into);
      else if (view.kind[i] === ENCODED) more = into.pushEncoded(span, 0, host, view.length[i] as number);
      else if (view.allocated !== undefined) more = this.#pushExtended(view, i, skip, child, into);
      else if (view.kind[i] === DATA) more = into.push('data', span, child, host + skip, false);
      else more = into.push(view.kind[i] === ZERO ? 'zero' : 'unallocated', span, child, -1, false);
      if (!more) return;
    }
  }

  #pushExtended(view: SlotView, i: number, skip: number, child: number, into: RunList): boolean {
    const { clusterSize, subclusterSize } = this.#parts.rules.geometry;
    const allocated = view.allocated?.[i] ?? 0;
    const zero = view.zero?.[i] ?? 0;
    for (let from = skip; from < clusterSize; ) {
      const sub = divFloor(from, subclusterSize);
      const end = (sub + 1) * subclusterSize;
      const isData = hasSubcluster(allocated, sub);
      const kind = isData ? 'data' : hasSubcluster(zero, sub) ? 'zero' : 'unallocated';
      const host = isData ? (view.host[i] as number) + from : -1;
      if (!into.push(kind, end - from, child, host, false)) return false;
      from = end;
    }
    return true;
  }

  decode(runs: RunList, first: number, count: number, into: Uint8Array): Promise<void> {
    return this.#decode(runs, first, count, into);
  }

  /** One cluster after the other: recovery is not in a hurry, and each must fail for itself. */
  async #decode(runs: RunList, first: number, count: number, into: Uint8Array): Promise<void> {
    const { file, rules, codecs, compression, name } = this.#parts;
    const { clusterSize } = rules.geometry;
    const cluster = new Uint8Array(clusterSize);
    let at = 0;
    for (let i = first; i < first + count; i++) {
      const { guestOffset, length, hostOffset, encodedLength } = runs.at(i);
      const encoded = new Uint8Array(encodedLength);
      await file.read(hostOffset, encoded);
      const lengths = Int32Array.of(encodedLength);
      try {
        await codecs.decompress(compression, encoded, Int32Array.of(0), lengths, clusterSize, cluster);
      } catch (error) {
        throw new BlockError(
          'CORRUPT',
          `qcow2 "${name}": the compressed cluster at ${hex(hostOffset)} (guest offset ${hex(guestOffset)}) does not decompress`,
          { reason: 'qcow2.compressed-data', details: { offset: hostOffset, guestOffset, errno: 'EIO' }, cause: error },
        );
      }
      const skip = guestOffset % clusterSize;
      into.set(cluster.subarray(skip, skip + length), at);
      at += length;
    }
  }

  // ---- telling -------------------------------------------------------------------------------------------------------------------

  async *#ranges({ signal, onProgress }: JobOptions = {}): AsyncGenerator<RecoveredRange, void, undefined> {
    const { rules, tables, verdict } = this.#parts;
    const { l2Coverage, clusterSize } = rules.geometry;
    const pacer = new Pacer();
    let held: RecoveredRange | undefined;
    for (let slot = 0; slot * l2Coverage < this.virtualSize; slot++) {
      const start = slot * l2Coverage;
      const end = Math.min(this.virtualSize, start + l2Coverage);
      if (pacer.due) {
        onProgress?.({ phase: 'reporting', done: start, total: this.virtualSize });
        await pacer.pause(signal);
      }
      if ((tables[slot] ?? 0) === 0) {
        const { state, why } = verdict.emptySlot();
        const next = this.#range(start, end - start, state, state === LOST ? 'none' : 'backing', why);
        const joined = join(held, next);
        if (held !== undefined && joined === undefined) yield held;
        held = joined ?? next;
        continue;
      }
      const view = await this.#load(slot);
      for (let i = 0; i < view.clusters; ) {
        const first = i;
        const content = contentOf(view, i);
        for (i++; i < view.clusters; i++) {
          if (view.state[i] !== view.state[first] || view.why[i] !== view.why[first]) break;
          if (contentOf(view, i) !== content) break;
        }
        const from = start + first * clusterSize;
        const length = Math.min(end, start + i * clusterSize) - from;
        const why = WHYS[view.why[first] as number] as Why;
        const next = this.#range(from, length, view.state[first] as number, content, why);
        const joined = join(held, next);
        if (held !== undefined && joined === undefined) yield held;
        held = joined ?? next;
      }
    }
    if (held !== undefined) yield held;
  }

  #range(start: number, length: number, state: number, content: RecoveredContent, why: Why): RecoveredRange {
    if (state === DOUBTFUL && this.#leavesOut)
      return { start, length, state: 'lost', content: 'none', why: 'left-out' };
    return { start, length, state: STATES[state] as RecoveredRange['state'], content, why };
  }

  // ---- the rest of a node --------------------------------------------------------------------------------------------------------

  info(): FormatInfo {
    return { clusterSize: this.unit };
  }

  flush(): Pending {
    return undefined;
  }

  async close(): Promise<void> {
    this.#views.clear();
  }
}

function leaveOut(view: SlotView): void {
  for (let i = 0; i < view.clusters; i++) if (view.state[i] === DOUBTFUL) view.lose(i, 'left-out');
}

function contentOf(view: SlotView, i: number): RecoveredContent {
  if (view.state[i] === LOST) return 'none';
  if (view.kind[i] === ENCODED) return 'compressed';
  if (view.kind[i] === DATA) return 'data';
  return view.kind[i] === ZERO ? 'zero' : 'backing';
}

function join(a: RecoveredRange | undefined, b: RecoveredRange): RecoveredRange | undefined {
  if (a === undefined || a.state !== b.state || a.content !== b.content || a.why !== b.why) return undefined;
  return { ...a, length: a.length + b.length };
}
