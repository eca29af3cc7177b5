/** preallocate: a file that grows gets more space than it needs at once, in one piece; what is left over is cut off at close.
 *  Behaviour: QEMU's `preallocate` filter.
 *  Invariants: the node's size is where its data ends, and never shows what was preallocated; everything from there to the end of the file reads
 *  as zero; the file never becomes shorter than what any running write reaches. */
import { Mutex, type Pending } from '../base/async.ts';
import { BlockError, isBlockError } from '../base/errors.ts';
import { defineOptions, size } from '../base/options.ts';
import { MiB } from '../base/sizes.ts';
import { alignUp } from '../bytes/align.ts';
import type { ExtentList } from '../core/extent.ts';
import { EXTENT } from '../core/extent.ts';
import { defineFilter } from '../core/filter.ts';
import type { ImageEvent } from '../core/format.ts';
import type { BlockNode } from '../core/node.ts';
import type { IoOptions, TruncateOptions, WriteOptions, ZeroOptions } from '../core/store.ts';
import { FilterNode } from './filter-node.ts';

const SECTOR = 512;

export interface PreallocateOptions {
  /** The file ends at a multiple of it, bytes. */
  readonly align: number;
  /** Bytes behind the end of a write that are preallocated. */
  readonly amount: number;
  readonly report: (event: ImageEvent) => void;
}

export class PreallocateNode extends FilterNode {
  readonly #align: number;
  readonly #amount: number;
  readonly #report: (event: ImageEvent) => void;
  /** Changes of the file's length follow each other. */
  readonly #growing = new Mutex();
  /** The end of the data, and the file's end as far as we made it. */
  #dataEnd: number;
  #fileEnd: number;
  /** From here to the end of the file there are zeros, which were never written over. */
  #zeroStart: number;
  /** The file cannot be preallocated: it is left alone. */
  #given: boolean;

  constructor(name: string, file: BlockNode, { align, amount, report }: PreallocateOptions) {
    super(name, 'preallocate', file);
    this.#align = Math.max(align, file.limits.requestAlign);
    this.#amount = amount;
    this.#report = report;
    this.#dataEnd = file.size;
    this.#fileEnd = file.size;
    this.#zeroStart = file.size;
    const { write, truncate, writeZeroes } = file.supports;
    this.#given = !write || !truncate || writeZeroes !== 'fast';
  }

  override get size(): number {
    return this.#given && this.#fileEnd <= this.#dataEnd ? this.inner.size : this.#dataEnd;
  }

  protected override _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    const ready = this.#reach(offset + from.length, false);
    return then(ready, () => super._write(offset, from, options));
  }

  protected override _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    const end = offset + length;
    const plain = options?.unmap !== true && options?.fua !== true;
    const isNew = plain && offset >= this.#zeroStart;
    const ready = this.#reach(end, isNew);
    // What was preallocated there is zero already, unless that failed or something was written meanwhile.
    return then(ready, () =>
      isNew && offset >= this.#zeroStart && end <= this.#fileEnd
        ? undefined
        : super._writeZeroes(offset, length, options),
    );
  }

  protected override _extents(
    offset: number,
    length: number,
    into: ExtentList,
    options: IoOptions | undefined,
  ): Pending {
    const inside = Math.max(0, Math.min(length, this.size - offset));
    const addRest = (): Pending => {
      if (inside < length && into.end === offset + inside) into.add(length - inside, EXTENT.present + EXTENT.zero);
      return undefined;
    };
    return inside === 0 ? addRest() : then(super._extents(offset, inside, into, options), addRest);
  }

  protected override async _truncate(newSize: number, options: TruncateOptions | undefined): Promise<void> {
    await this.#growing.run(async () => {
      const isSpare = this.#fileEnd > this.#dataEnd;
      if (isSpare && newSize > this.#dataEnd) {
        if (options?.preallocation === 'falloc' && newSize <= this.#fileEnd) {
          // A part of what is there already becomes what was asked for.
          this.#dataEnd = newSize;
          return;
        }
        // Else the caller's mode would not hold for all of it.
        await this.#crop();
      }
      await super._truncate(newSize, options);
      this.#dataEnd = newSize;
      this.#fileEnd = newSize;
      this.#zeroStart = newSize;
    });
  }

  protected override async _close(): Promise<void> {
    await this.#crop();
  }

  /** Gives back what nobody wrote to. */
  async #crop(): Promise<void> {
    if (this.#fileEnd <= this.#dataEnd) return;
    // From here on: a write that comes meanwhile must wait, else it would be cut off.
    this.#fileEnd = this.#dataEnd;
    await super._truncate(this.#dataEnd, undefined);
  }

  /** Notes that a write reaches `end`, and makes room where the file ends before that. */
  #reach(end: number, keepsZeros: boolean): Pending {
    if (!keepsZeros && end > this.#zeroStart) this.#zeroStart = end;
    if (end > this.#dataEnd) this.#dataEnd = end;
    return this.#given || end <= this.#fileEnd ? undefined : this.#grow();
  }

  async #grow(): Promise<void> {
    await this.#growing.run(async () => {
      if (this.#given || this.#dataEnd <= this.#fileEnd) return;
      const from = this.#fileEnd;
      // The end of the data as it is now: other writes may have come while this one waited.
      const to = alignUp(this.#dataEnd + this.#amount, Math.max(1, this.#align));
      try {
        await super._truncate(to, undefined);
        this.#fileEnd = to;
        await super._writeZeroes(from, to - from, { fastOnly: true });
      } catch (error) {
        await this.#giveUp(error);
      }
    });
  }

  /** More space is a favour: the write that asked for it goes on without. */
  async #giveUp(error: unknown): Promise<void> {
    if (isBlockError(error) && error.code === 'CLOSED') throw error;
    await this.#crop();
    this.#given = true;
    this.#report({
      type: 'warning',
      node: this.name,
      reason: 'preallocate.failed',
      message: `preallocate "${this.name}": nothing more is preallocated: ${error instanceof Error ? error.message : 'the file does not allow it'}`,
    });
  }
}

function then(ready: Pending, request: () => Pending): Pending {
  return ready === undefined ? request() : waitThen(ready, request);
}

async function waitThen(ready: Promise<void>, request: () => Pending): Promise<void> {
  await ready;
  await request();
}

export const preallocate = defineFilter({
  name: 'preallocate',
  summary: 'gives a growing file more space than it needs at once',
  children: [{ name: 'file', role: 'file', probed: 'never' }],
  openOptions: defineOptions({
    preallocAlign: size({
      cli: 'prealloc-align',
      default: MiB,
      content: false,
      help: 'the file ends at a multiple of it',
    }),
    preallocSize: size({
      cli: 'prealloc-size',
      default: 128 * MiB,
      content: false,
      help: 'bytes preallocated behind a write',
    }),
  }),
  listOptions: {},
  async open(context, options) {
    const { name } = context;
    const align = options.preallocAlign;
    const [file] = context.children('file') as readonly [BlockNode];
    if (align % SECTOR !== 0) {
      throw new BlockError('OPTION', `preallocate "${name}": prealloc-align ${align} is not a multiple of ${SECTOR}`, {
        reason: 'preallocate.align',
        details: { align },
      });
    }
    const { requestAlign } = file.limits;
    if (align % requestAlign !== 0) {
      throw new BlockError(
        'OPTION',
        `preallocate "${name}": prealloc-align ${align} is not a multiple of ${requestAlign}, which the file below needs`,
        { reason: 'preallocate.align-below', details: { align, requestAlign } },
      );
    }
    const { report } = context;
    return new PreallocateNode(name, file, {
      align,
      amount: options.preallocSize,
      report: (event) => report.call(context, event),
    });
  },
});
