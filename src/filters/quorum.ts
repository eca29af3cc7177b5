/** quorum: several disks that should hold the same. Writes go to all of them, reads give what enough of them agree on.
 *  Behaviour: QEMU's `quorum`. It cannot give space back; here a discard zeroes on all, so that they still agree.
 *  Invariants: overlapping requests follow each other, so that all children see them in one order, and no vote sees half of a write;
 *  a request succeeds when it did so on `vote-threshold` children, and of every child that it failed on somebody is told. */
import { type Pending, settleAll } from '../base/async.ts';
import { BlockError, errnoOf, hex, isBlockError } from '../base/errors.ts';
import { firstDifference } from '../bytes/equal.ts';
import { EXTENT, ExtentList } from '../core/extent.ts';
import type { ImageEvent } from '../core/format.ts';
import type { BlockNode, Child } from '../core/node.ts';
import { RangeLock } from '../core/range-lock.ts';
import {
  BaseStore,
  type IoOptions,
  type StoreLimits,
  type StoreStatus,
  type StoreSupports,
  type TruncateOptions,
  type WriteOptions,
  type ZeroOptions,
} from '../core/store.ts';
import { commonFailure, sameContent, versionsOf, winnerOf } from './quorum-vote.ts';

export interface QuorumOptions {
  /** How many must agree. */
  readonly threshold: number;
  /** Two children of which every difference is an error that names its place. */
  readonly blkverify: boolean;
  /** Children that were outvoted are given what the others hold. */
  readonly rewriteCorrupted: boolean;
  /** `fifo`: reads ask one child after the other until one answers. */
  readonly readPattern: 'quorum' | 'fifo';
  readonly report: (event: ImageEvent) => void;
}

type Verb = 'read' | 'write' | 'flush';

export class QuorumNode extends BaseStore {
  override readonly children: readonly Child[];
  readonly limits: StoreLimits;
  readonly supports: StoreSupports;
  readonly #nodes: readonly BlockNode[];
  readonly #options: QuorumOptions;
  readonly #lock = new RangeLock();
  #size: number;

  /** @param nodes of one size */
  constructor(name: string, nodes: readonly BlockNode[], options: QuorumOptions) {
    super(name, 'quorum');
    this.#nodes = nodes;
    this.#options = options;
    this.#size = nodes[0]?.size ?? 0;
    this.children = nodes.map((node, i) => ({ role: 'file', name: `children.${i}`, node }));
    this.limits = commonLimits(nodes);
    this.supports = commonSupports(nodes);
  }

  get size(): number {
    return this.#size;
  }

  async status(): Promise<StoreStatus> {
    if (this.closed) throw new BlockError('CLOSED', `"${this.name}": status after close`);
    let allocatedBytes = 0;
    for (const node of this.#nodes) {
      const one = (await node.status?.())?.allocatedBytes;
      if (one === undefined) return {};
      allocatedBytes += one;
    }
    return { allocatedBytes };
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    if (this.#options.readPattern === 'fifo') return this.#readFirst(offset, into, options);
    return this.#alone(offset, into.length, () => this.#readAll(offset, into, options));
  }

  protected async _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    await this.#alone(offset, from.length, () =>
      this.#onAll('write', offset, from.length, (node) => node.write(offset, from, options)),
    );
    this.#size = Math.max(this.#size, offset + from.length);
  }

  protected async _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Promise<void> {
    if (options?.fastOnly === true && this.supports.writeZeroes !== 'fast') throw this.#tooSlow(offset, length);
    await this.#alone(offset, length, () => this.#zeroAll(offset, length, options));
    this.#size = Math.max(this.#size, offset + length);
  }

  /** What is discarded may read as anything, and as something else in every child: so all of them get zeros. */
  protected async _discard(offset: number, length: number, options: IoOptions | undefined): Promise<void> {
    const inside = Math.min(length, this.#size - offset);
    if (inside <= 0 || this.supports.writeZeroes !== 'fast') return;
    try {
      await this.#alone(offset, inside, () =>
        this.#zeroAll(offset, inside, { ...options, unmap: true, fastOnly: true }),
      );
    } catch (error) {
      if (!isBlockError(error) || error.code !== 'UNSUPPORTED') throw error;
    }
  }

  protected async _flush(options: IoOptions | undefined): Promise<void> {
    await this.#onAll('flush', 0, 0, (node) => node.flush(options));
  }

  /** QEMU has none. A format above needs it, for its file grows. */
  protected async _truncate(size: number, options: TruncateOptions | undefined): Promise<void> {
    await this.#alone(0, Number.MAX_SAFE_INTEGER, () =>
      settleAll(this.#nodes.map((node) => started(() => node.truncate(size, options)))),
    );
    this.#size = size;
  }

  /** Zero where all children say so, data where one does. Where it lies is nobody's place. */
  protected async _extents(
    offset: number,
    length: number,
    into: ExtentList,
    options: IoOptions | undefined,
  ): Promise<void> {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const { zero, covered } = await this.#statusAt(at, end - at, options);
      if (!into.add(covered, EXTENT.present + (zero ? EXTENT.zero : EXTENT.data))) return;
      at += covered;
    }
  }

  protected async _close(): Promise<void> {}

  async #statusAt(
    at: number,
    length: number,
    options: IoOptions | undefined,
  ): Promise<{ readonly zero: boolean; readonly covered: number }> {
    let zeros = length;
    let data = 0;
    for (const node of this.#nodes) {
      const list = new ExtentList(1);
      list.reset(at);
      try {
        await node.extents(at, length, list, options);
      } catch (error) {
        this.#reportChild('read', node, at, length, error);
        return { zero: false, covered: length };
      }
      if (list.at(0).zero) zeros = Math.min(zeros, list.lengthAt(0));
      else data = Math.max(data, list.lengthAt(0));
    }
    return data > 0 ? { zero: false, covered: data } : { zero: true, covered: zeros };
  }

  // ── reading ──────────────────────────────────────────────────────────────────────────────────

  async #readFirst(offset: number, into: Uint8Array, options: IoOptions | undefined): Promise<void> {
    let failure: unknown;
    for (const node of this.#nodes) {
      try {
        await node.read(offset, into, options);
        return;
      } catch (error) {
        if (isAborted(error)) throw error;
        this.#reportChild('read', node, offset, into.length, error);
        failure = error;
      }
    }
    throw failure;
  }

  async #readAll(offset: number, into: Uint8Array, options: IoOptions | undefined): Promise<void> {
    const buffers = this.#nodes.map((_, i) => (i === 0 ? into : new Uint8Array(into.length)));
    const failures = await this.#attempt('read', offset, into.length, (node, i) =>
      node.read(offset, buffers[i] as Uint8Array, options),
    );
    const contents = buffers.map((buffer, i) => (failures[i] === undefined ? buffer : undefined));
    const versions = versionsOf(contents, sameContent);
    const winner = winnerOf(versions);
    if (winner === undefined) throw failures[0];
    if (versions.length > 1 && this.#options.blkverify) throw this.#mismatch(offset, buffers);
    if (winner.voters.length < this.#options.threshold) throw this.#disagree(offset, into.length);
    if (winner.value !== into) into.set(winner.value);
    const outvoted = versions.filter((version) => version !== winner).flatMap(({ voters }) => voters);
    for (const i of outvoted) this.#reportChild('read', this.#nodes[i] as BlockNode, offset, into.length, undefined);
    if (this.#options.rewriteCorrupted) await this.#rewrite(outvoted, offset, into, options);
  }

  /** A favour: what the reader gets is right, whether or not it succeeds. */
  async #rewrite(
    outvoted: readonly number[],
    offset: number,
    content: Uint8Array,
    options: IoOptions | undefined,
  ): Promise<void> {
    // Bytes past the end are read, and never written.
    const inside = content.subarray(0, Math.max(0, this.#size - offset));
    await Promise.all(
      outvoted.map(async (i) => {
        const node = this.#nodes[i] as BlockNode;
        try {
          await node.write(offset, inside, options);
        } catch (error) {
          this.#reportChild('write', node, offset, inside.length, error);
        }
      }),
    );
  }

  #mismatch(offset: number, [first, second]: readonly Uint8Array[]): BlockError {
    const at = offset + firstDifference(first as Uint8Array, second as Uint8Array);
    return new BlockError(
      'IO',
      `quorum "${this.name}": the two children differ at ${hex(at)}, in ${(first as Uint8Array).length} bytes read at ${hex(offset)}`,
      { reason: 'quorum.mismatch', details: { offset, length: (first as Uint8Array).length, at } },
    );
  }

  #disagree(offset: number, length: number): BlockError {
    const what = `fewer than ${this.#options.threshold} children agree on ${length} bytes at ${hex(offset)}`;
    this.#options.report({
      type: 'warning',
      node: this.name,
      reason: 'quorum.failure',
      message: `quorum "${this.name}": ${what}`,
    });
    return new BlockError('IO', `quorum "${this.name}": ${what}`, {
      reason: 'quorum.failure',
      details: { offset, length, errno: 'EIO' },
    });
  }

  // ── on all children ──────────────────────────────────────────────────────────────────────────

  async #onAll(verb: Verb, offset: number, length: number, request: (node: BlockNode) => Pending): Promise<void> {
    await this.#attempt(verb, offset, length, request);
  }

  /** Does it on every child. @returns the failure of each, where there was one.
   *  @throws the failure of the most, where fewer than the threshold succeeded. */
  async #attempt(
    verb: Verb,
    offset: number,
    length: number,
    request: (node: BlockNode, i: number) => Pending,
  ): Promise<readonly unknown[]> {
    const failures = await Promise.all(this.#nodes.map((node, i) => failureOf(() => request(node, i))));
    const aborted = failures.find(isAborted);
    if (aborted !== undefined) throw aborted;
    failures.forEach((error, i) => {
      if (error !== undefined) this.#reportChild(verb, this.#nodes[i] as BlockNode, offset, length, error);
    });
    const succeeded = failures.filter((error) => error === undefined).length;
    if (succeeded < this.#options.threshold) throw commonFailure(failures);
    return failures;
  }

  /** What one child zeroes quickly and another one cannot is written there: they must hold the same. */
  async #zeroAll(offset: number, length: number, options: ZeroOptions | undefined): Promise<void> {
    if (options?.fastOnly !== true) {
      await this.#onAll('write', offset, length, (node) => node.writeZeroes(offset, length, options));
      return;
    }
    const slow = new Set<BlockNode>();
    const failures = new Map<BlockNode, unknown>();
    await Promise.all(
      this.#nodes.map(async (node) => {
        const failure = await failureOf(() => node.writeZeroes(offset, length, options));
        if (isBlockError(failure) && failure.code === 'UNSUPPORTED') slow.add(node);
        else failures.set(node, failure);
      }),
    );
    if (slow.size === this.#nodes.length) throw this.#tooSlow(offset, length);
    await this.#onAll('write', offset, length, (node) => {
      if (slow.has(node)) return node.writeZeroes(offset, length, { ...options, fastOnly: false });
      const failure = failures.get(node);
      if (failure !== undefined) throw failure;
      return undefined;
    });
  }

  #tooSlow(offset: number, length: number): BlockError {
    return new BlockError(
      'UNSUPPORTED',
      `quorum "${this.name}": no fast way to zero ${hex(length)} bytes at ${hex(offset)} in all children`,
      { reason: 'store.zeroes-slow', details: { offset, length } },
    );
  }

  async #alone(offset: number, length: number, body: () => Promise<unknown>): Promise<void> {
    const ticket = this.#lock.acquire(offset, offset + length);
    try {
      if (ticket.waiting !== undefined) await ticket.waiting;
      await body();
    } finally {
      this.#lock.release(ticket);
    }
  }

  /** @param error `undefined`: it was outvoted */
  #reportChild(verb: Verb, node: BlockNode, offset: number, length: number, error: unknown): void {
    const where = verb === 'flush' ? 'flush' : `${verb} of ${length} bytes at ${hex(offset)}`;
    const what =
      error === undefined
        ? 'holds something else than the others'
        : `failed: ${error instanceof Error ? error.message : errnoOf(error)}`;
    this.#options.report({
      type: 'warning',
      node: this.name,
      reason: 'quorum.child',
      message: `quorum "${this.name}": child "${node.name}": ${where}: ${what}`,
    });
  }
}

async function started(call: () => Pending): Promise<void> {
  await call();
}

async function failureOf(call: () => Pending): Promise<unknown> {
  try {
    await call();
    return undefined;
  } catch (error) {
    return error ?? new BlockError('IO', 'failed without a reason');
  }
}

function isAborted(error: unknown): boolean {
  return isBlockError(error) && error.code === 'ABORTED';
}

/** What suits every child. */
function commonLimits(nodes: readonly BlockNode[]): StoreLimits {
  const all = nodes.map(({ limits }) => limits);
  const most = (of: (limits: StoreLimits) => number): number => Math.max(...all.map(of));
  const least = (of: (limits: StoreLimits) => number): number => Math.min(...all.map(of));
  return {
    requestAlign: most(({ requestAlign }) => requestAlign),
    zeroAlign: most(({ zeroAlign }) => zeroAlign),
    discardAlign: most(({ discardAlign }) => discardAlign),
    preferredIo: most(({ preferredIo }) => preferredIo),
    maxIo: least(({ maxIo }) => maxIo),
    maxInFlight: least(({ maxInFlight }) => maxInFlight),
  };
}

function commonSupports(nodes: readonly BlockNode[]): StoreSupports {
  const all = nodes.map(({ supports }) => supports);
  const write = all.every((one) => one.write);
  const zeroes = all.every((one) => one.writeZeroes === 'fast') ? 'fast' : 'emulated';
  return {
    write,
    truncate: all.every((one) => one.truncate),
    writeZeroes: write ? zeroes : 'no',
    discard: all.every((one) => one.discard),
    extents: all.every((one) => one.extents),
    fua: all.every((one) => one.fua),
    sync: false,
    access: 'random',
  };
}
