/** The guest of the model and crash tests: begins random requests on a format, several at once, and knows what each may see. Owns what a
 *  format must offer to be tested. Invariant: all choices come from the random numbers it is given. */
import { isBlockError } from '../base/errors.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { isZero } from '../bytes/zeros.ts';
import { ExtentList } from '../core/extent.ts';
import type { BlockNode } from '../core/node.ts';
import type { SafetyRules } from '../core/safety.ts';
import type { CacheBudget } from '../core/table-cache.ts';
import type { FrozenContents } from './frozen-contents.ts';
import type { GuestHistory } from './guest-history.ts';
import { below } from './random.ts';

/** A format as the harness sees it. Files are stores; the first one is the image. */
export interface FormatUnderTest {
  readonly name: string;
  /** Bytes. */
  readonly unit: number;
  /** A new image of `size` bytes: the content of each of its files. */
  create(size: number, options: { readonly hasBacking: boolean }): Promise<readonly Uint8Array[]>;
  open(files: readonly BlockNode[], options: OpenUnderTest): Promise<OpenedUnderTest>;
  /** Consistency of a closed (or crashed) image. May repair what the format repairs at open. */
  check(files: readonly Uint8Array[]): Promise<{ readonly corruptions: readonly string[]; readonly leaks: number }>;
}

export interface OpenUnderTest {
  readonly rules: SafetyRules;
  readonly cache: CacheBudget;
  readonly readOnly: boolean;
  readonly backing: BlockNode | undefined;
}

export interface OpenedUnderTest {
  readonly node: BlockNode;
  /** Freezes the present content (a snapshot), where the format can. */
  share?(): Promise<void>;
  /** The content frozen last; `undefined` when there is none. */
  readShared?(): Promise<Uint8Array | undefined>;
}

export interface GuestWeights {
  readonly read?: number;
  readonly write?: number;
  readonly zero?: number;
  readonly discard?: number;
  readonly compressed?: number;
  readonly flush?: number;
  readonly share?: number;
}

export interface GuestOptions {
  /** Bytes of the disk; a multiple of `cellSize`. */
  readonly size: number;
  /** Requests are multiples of it, and it is the granularity of what is checked. 512 by default. */
  readonly cellSize?: number;
  /** Requests at once at most. 6 by default. */
  readonly concurrency?: number;
  readonly weights?: GuestWeights;
  /** Cells of the longest request. */
  readonly longest?: number;
  /** Bytes of the backing file, which may be shorter or longer than the disk; none by default. */
  readonly backingSize?: number;
  /** What a discard of whole units does: they read as zero (default), or it is a hint. */
  readonly discard?: 'zeroes' | 'hint';
  readonly rules?: SafetyRules;
  /** Bytes of tables in memory. 0 by default: the least that every cache is allowed. */
  readonly cacheBytes?: number;
}

/** Something that must not be. `message` names the seed. */
export class ModelFailure extends Error {
  override readonly name = 'ModelFailure';
}

/** The guest: begins random requests and knows what each may see. */
export class Guest {
  readonly history: GuestHistory;
  readonly #opened: OpenedUnderTest;
  readonly #options: GuestOptions;
  readonly #unit: number;
  readonly #random: () => number;
  readonly #running = new Set<Promise<void>>();
  readonly #faults: boolean;
  #failure: { error: unknown } | undefined;
  /** Requests that failed as they were allowed to. */
  failed = 0;
  /** Frozen contents, as they were when frozen. */
  readonly #frozen: FrozenContents;

  constructor(
    opened: OpenedUnderTest,
    options: GuestOptions & { readonly faults?: boolean },
    unit: number,
    history: GuestHistory,
    random: () => number,
    frozen: FrozenContents,
  ) {
    this.history = history;
    this.#opened = opened;
    this.#options = options;
    this.#unit = unit;
    this.#random = random;
    this.#frozen = frozen;
    this.#faults = options.faults === true;
  }

  /** Runs `count` requests, several at once, and waits for all of them. @throws the first failure. */
  async run(count: number): Promise<void> {
    const most = this.#options.concurrency ?? 6;
    for (let i = 0; i < count && this.#failure === undefined; i++) {
      this.#start();
      while (this.#running.size > below(this.#random, most) && this.#failure === undefined) {
        await Promise.race(this.#running);
      }
    }
    while (this.#running.size > 0) await Promise.all(this.#running);
    if (this.#failure !== undefined) throw this.#failure.error;
  }

  #start(): void {
    const running: Promise<void> = this.#request()
      .catch((error: unknown) => {
        this.#failure ??= { error };
      })
      .finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  async #request(): Promise<void> {
    const {
      read = 20,
      write = 45,
      zero = 10,
      discard = 8,
      compressed = 0,
      flush = 5,
      share = 0,
    } = this.#options.weights ?? {};
    const kinds = [
      [write, () => this.#write()],
      [read, () => this.#read()],
      [zero, () => this.#zero()],
      [discard, () => this.#discard()],
      [compressed, () => this.#compressed()],
      [flush, () => this.flush()],
      [share, () => this.#share()],
    ] as const;
    let choice = below(
      this.#random,
      kinds.reduce((sum, [weight]) => sum + weight, 0),
    );
    for (const [weight, begin] of kinds) {
      if (choice < weight) return await begin();
      choice -= weight;
    }
  }

  /** A range of cells: mostly short, some long, some ending at the disk's end. */
  #range(): { first: number; count: number } {
    const { cells } = this.history;
    const longest = Math.min(this.#options.longest ?? 12, cells);
    const count = 1 + below(this.#random, below(this.#random, 4) === 0 ? longest : Math.min(3, longest));
    const first = below(this.#random, 20) === 0 ? cells - count : below(this.#random, cells - count + 1);
    return { first, count };
  }

  async #write(): Promise<void> {
    const { first, count } = this.#range();
    await this.#change(first, count, 'data', async (bytes) => {
      await this.#opened.node.write(first * this.history.cellSize, bytes, { fua: below(this.#random, 25) === 0 });
    });
  }

  async #compressed(): Promise<void> {
    const { first, count } = this.#range();
    const { cellSize, cells } = this.history;
    const start = alignDown(first * cellSize, this.#unit);
    const end = Math.min(alignUp((first + count) * cellSize, this.#unit), cells * cellSize);
    await this.#change(start / cellSize, (end - start) / cellSize, 'data', async (bytes) => {
      await this.#opened.node.write(start, bytes, { compressed: true });
    });
  }

  async #zero(): Promise<void> {
    const { first, count } = this.#range();
    const { cellSize } = this.history;
    await this.#change(first, count, 'zero', async () => {
      const unmap = below(this.#random, 2) === 0;
      await this.#opened.node.writeZeroes(first * cellSize, count * cellSize, { unmap });
    });
  }

  async #discard(): Promise<void> {
    const { first, count } = this.#range();
    const { cellSize, cells } = this.history;
    const size = cells * cellSize;
    const end = (first + count) * cellSize;
    const unit = this.#opened.node.format?.discardUnit ?? this.#unit;
    const innerStart = alignUp(first * cellSize, unit);
    const innerEnd = end === size ? end : alignDown(end, unit);
    const inner = Math.max(0, innerEnd - innerStart) / cellSize;
    // Of a part of a unit it depends on what is there.
    const isWhole = innerStart % this.#unit === 0 && (innerEnd === size || innerEnd % this.#unit === 0);
    const certain = this.#options.discard !== 'hint' && isWhole;
    await this.#change(
      innerStart / cellSize,
      inner,
      'zero',
      async () => {
        await this.#opened.node.discard(first * cellSize, count * cellSize);
      },
      certain,
    );
  }

  async #change(
    first: number,
    count: number,
    kind: 'data' | 'zero',
    make: (bytes: Uint8Array) => Promise<void>,
    certain = true,
  ): Promise<void> {
    const write = this.history.begin(first, count, kind, certain);
    const bytes = new Uint8Array(kind === 'data' ? count * this.history.cellSize : 0);
    if (kind === 'data') this.history.stamp(bytes, first, write.id);
    try {
      await make(bytes);
    } catch (error) {
      this.history.end(write, true);
      this.#acceptFailure(error);
      return;
    } finally {
      // The buffer is the guest's again: whoever still uses it writes this.
      bytes.fill(0xee);
    }
    this.history.end(write);
  }

  #acceptFailure(error: unknown): void {
    if (!this.#faults || !isBlockError(error) || error.code === 'INTERNAL') throw error;
    this.failed++;
  }

  async #read(): Promise<void> {
    const { first, count } = this.#range();
    await this.#compare(first, count);
  }

  async #compare(first: number, count: number): Promise<void> {
    const { history } = this;
    const bytes = new Uint8Array(count * history.cellSize).fill(0xcc);
    const from = history.now();
    try {
      await this.#opened.node.read(first * history.cellSize, bytes);
    } catch (error) {
      this.#acceptFailure(error);
      return;
    }
    const to = history.now();
    const wrong = history.findWrong(bytes, first, (cell) => history.allowed(cell, from, to));
    if (wrong !== undefined) throw new ModelFailure(`read: ${wrong}`);
  }

  async flush(): Promise<void> {
    const flush = this.history.beginFlush();
    try {
      await this.#opened.node.flush();
    } catch (error) {
      this.#acceptFailure(error);
      return;
    }
    this.history.endFlush(flush);
  }

  async #share(): Promise<void> {
    if (this.#opened.share === undefined || this.#opened.readShared === undefined) return;
    // One at a time: which of two concurrent ones was last could not be told.
    const turn = this.#frozen.begin();
    if (turn === undefined) return;
    const { history } = this;
    const from = history.now();
    await this.#opened.share();
    const to = history.now();
    const content = await this.#opened.readShared();
    if (content === undefined) throw new ModelFailure('share: nothing was frozen');
    const allowed = Array.from({ length: history.cells }, (_, cell) => history.allowed(cell, from, to));
    this.#frozen.end(turn, { content, allowed });
    const wrong = history.findWrong(content, 0, (cell) => allowed[cell] ?? []);
    if (wrong !== undefined) throw new ModelFailure(`share: ${wrong}`);
  }

  /** With nothing running: every cell against the model, the status against the cells, the frozen content against what was frozen. */
  async verify(): Promise<void> {
    const { history } = this;
    const { node } = this.#opened;
    const bytes = new Uint8Array(history.cells * history.cellSize);
    await node.read(0, bytes);
    const now = history.now();
    const wrong = history.findWrong(bytes, 0, (cell) => history.allowed(cell, now, now));
    if (wrong !== undefined) throw new ModelFailure(`after everything had ended: ${wrong}`);
    const frozen = await this.#opened.readShared?.();
    const wrongFrozen = this.#frozen.findChange(frozen);
    if (wrongFrozen !== undefined) throw new ModelFailure(wrongFrozen);
    await verifyExtents(node, bytes);
  }

  /** Takes the present content for the history of all cells. */
  async settle(): Promise<void> {
    const { history } = this;
    const bytes = new Uint8Array(history.cells * history.cellSize);
    await this.#opened.node.read(0, bytes);
    for (let cell = 0; cell < history.cells; cell++) {
      history.settle(cell, history.identify(bytes, cell * history.cellSize, cell) as number);
    }
  }
}

/** The extents cover the disk, and what they call zero reads as zero. */
export async function verifyExtents(node: BlockNode, content: Uint8Array): Promise<void> {
  const list = new ExtentList(16);
  for (let at = 0; at < node.size; at = list.end) {
    list.reset(at);
    await node.extents(at, node.size - at, list);
    if (list.end <= at) throw new ModelFailure(`extents: nothing is told about offset ${at}`);
    for (const { start, length, zero } of list) {
      if (!zero) continue;
      if (!isZero(content, start, start + length)) {
        throw new ModelFailure(`extents: something in [${start}, ${start + length}) is called zero and is not`);
      }
    }
  }
}
