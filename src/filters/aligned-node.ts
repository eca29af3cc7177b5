/** What filters share that ask more of requests than bytes: an alignment, a longest transfer, units of zeroing and discarding. From outside such
 *  a node takes any byte offset; inside, a subclass sees requests that keep its requirements.
 *  Invariants:
 *  - reads are widened, through a buffer; writes that end between two aligned places read, change and write what is around them, and no write
 *    that overlaps runs meanwhile (range lock);
 *  - the file's size is what the caller wrote, never rounded: the last block of a file may be short;
 *  - where nothing is required a request goes straight through, without a promise or a buffer. */
import type { Pending } from '../base/async.ts';
import { BlockError, hex } from '../base/errors.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import type { BlockNode, ChildRole } from '../core/node.ts';
import { RangeLock } from '../core/range-lock.ts';
import type { BlockEvent, IoOptions, StoreLimits, WriteOptions, ZeroOptions } from '../core/store.ts';
import { FilterNode } from './filter-node.ts';

/** Bytes. 0: none. */
export interface Requirements {
  /** Power of two; offsets and lengths of all requests are multiples. 0 and 1: any. */
  readonly requestAlign: number;
  readonly maxTransfer: number;
  /** Zero requests smaller than this are written instead, larger ones are cut at its multiples. */
  readonly zeroAlign: number;
  readonly maxZero: number;
  readonly discardAlign: number;
  readonly maxDiscard: number;
}

export const NO_REQUIREMENTS: Requirements = {
  requestAlign: 1,
  maxTransfer: 0,
  zeroAlign: 0,
  maxZero: 0,
  discardAlign: 0,
  maxDiscard: 0,
};

/** Zeros are written from buffers of at most this size. */
const ZERO_CHUNK = 1024 * 1024;

export class AlignedNode extends FilterNode {
  readonly #requires: Requirements;
  readonly #align: number;
  readonly #ranges = new RangeLock();

  constructor(
    name: string,
    driver: string,
    inner: BlockNode,
    requires: Requirements,
    child?: { readonly name: string; readonly role: ChildRole },
  ) {
    super(name, driver, inner, child);
    this.#requires = requires;
    this.#align = Math.max(requires.requestAlign, inner.limits.requestAlign);
  }

  override get limits(): StoreLimits {
    const { zeroAlign, discardAlign } = this.inner.limits;
    return {
      ...this.inner.limits,
      requestAlign: 1,
      zeroAlign: Math.max(this.#requires.zeroAlign, zeroAlign, this.#align),
      discardAlign: Math.max(this.#requires.discardAlign, discardAlign, this.#align),
    };
  }

  // ── what a subclass changes ──────────────────────────────────────────────────────────────────

  protected readAligned(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    return this.inner.read(offset, into, options);
  }

  protected writeAligned(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.inner.write(offset, from, options);
  }

  protected zeroAligned(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    return this.inner.writeZeroes(offset, length, options);
  }

  protected discardAligned(offset: number, length: number, options: IoOptions | undefined): Pending {
    return this.inner.discard(offset, length, options);
  }

  /** The steps of a write here, for subclasses that have events of their own: `pwritev`, `pwritev_rmw_head`, … */
  protected step(_event: BlockEvent): Pending {
    return undefined;
  }

  /** Whether {@link step} does anything for this event. */
  protected hasStep(_event: BlockEvent): boolean {
    return false;
  }

  // ── reads ────────────────────────────────────────────────────────────────────────────────────

  protected override _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    const align = this.#align;
    if (align === 1 || (offset % align === 0 && into.length % align === 0)) {
      return this.#readParts(offset, into, options);
    }
    return this.#readWidened(offset, into, options);
  }

  async #readWidened(offset: number, into: Uint8Array, options: IoOptions | undefined): Promise<void> {
    const { start, end } = this.#around(offset, into.length);
    const wide = new Uint8Array(end - start);
    await this.#readParts(start, wide, options);
    into.set(wide.subarray(offset - start, offset - start + into.length));
  }

  #readParts(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    const { maxTransfer } = this.#requires;
    if (maxTransfer === 0 || into.length <= maxTransfer) return this.readAligned(offset, into, options);
    return inTurn(into.length, maxTransfer, (at, length) =>
      this.readAligned(offset + at, into.subarray(at, at + length), options),
    );
  }

  // ── writes ───────────────────────────────────────────────────────────────────────────────────

  protected override _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    if (this.#align === 1) return this.#writeParts(offset, from, options, 'pwritev');
    return this.#locked(offset, from.length, () => {
      const { start, end } = this.#around(offset, from.length);
      if (start === offset && end === offset + from.length) return this.#writeParts(offset, from, options, 'pwritev');
      return this.#readChangeWrite(offset, from, options);
    });
  }

  /** Whole blocks around a range; a file's last one may be short, as far as the file itself allows. */
  #around(offset: number, length: number): { readonly start: number; readonly end: number } {
    const end = offset + length;
    const limit = alignUp(Math.max(this.inner.size, end), this.inner.limits.requestAlign);
    return { start: alignDown(offset, this.#align), end: Math.min(alignUp(end, this.#align), limit) };
  }

  #locked(offset: number, length: number, body: () => Pending): Pending {
    const ticket = this.#ranges.acquire(alignDown(offset, this.#align), alignUp(offset + length, this.#align));
    let running: Pending;
    try {
      running = ticket.waiting === undefined ? body() : ticket.waiting.then(body);
    } catch (error) {
      this.#ranges.release(ticket);
      throw error;
    }
    if (running === undefined) {
      this.#ranges.release(ticket);
      return undefined;
    }
    return running.finally(() => this.#ranges.release(ticket));
  }

  async #readChangeWrite(offset: number, from: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    const { start, end } = this.#around(offset, from.length);
    const whole = new Uint8Array(end - start);
    const align = this.#align;
    const hasHead = start < offset;
    const hasTail = offset + from.length < end;
    // One read where both ends lie in one block, or in two that touch.
    const merged = whole.length <= align || (hasHead && hasTail && whole.length <= 2 * align);
    if (hasHead || merged) {
      if (hasHead) await this.step('pwritev_rmw_head');
      if (merged && hasTail) await this.step('pwritev_rmw_tail');
      await this.readAligned(start, whole.subarray(0, merged ? whole.length : align), options);
      if (hasHead) await this.step('pwritev_rmw_after_head');
      if (merged && hasTail) await this.step('pwritev_rmw_after_tail');
    }
    if (hasTail && !merged) {
      await this.step('pwritev_rmw_tail');
      await this.readAligned(alignDown(end - 1, align), whole.subarray(alignDown(end - 1, align) - start), options);
      await this.step('pwritev_rmw_after_tail');
    }
    whole.set(from, offset - start);
    await this.#writeParts(start, whole, options, 'pwritev');
  }

  #writeParts(
    offset: number,
    from: Uint8Array,
    options: WriteOptions | undefined,
    event: BlockEvent | undefined,
  ): Pending {
    if (event !== undefined && (this.hasStep(event) || this.hasStep('pwritev_done'))) {
      return this.#withSteps(event, () => this.#writeParts(offset, from, options, undefined));
    }
    const { maxTransfer } = this.#requires;
    if (maxTransfer === 0 || from.length <= maxTransfer) return this.writeAligned(offset, from, options);
    return inTurn(from.length, maxTransfer, (at, length) =>
      this.writeAligned(offset + at, from.subarray(at, at + length), options),
    );
  }

  /** The last step comes whatever became of the request. */
  async #withSteps(event: BlockEvent, body: () => Pending): Promise<void> {
    await this.step(event);
    try {
      await body();
    } finally {
      await this.step('pwritev_done');
    }
  }

  // ── zeroes and discards ──────────────────────────────────────────────────────────────────────

  protected override _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    if (this.#align === 1) return this.#zeroMiddle(offset, length, options);
    return this.#locked(offset, length, () => this.#zeroAround(offset, length, options));
  }

  async #zeroAround(offset: number, length: number, options: ZeroOptions | undefined): Promise<void> {
    const align = this.#align;
    const end = offset + length;
    const { start: wideStart, end: wideEnd } = this.#around(offset, length);
    const start = wideStart === offset ? offset : Math.min(end, alignUp(offset, align));
    // What ends with the file needs nothing of the rest of its block.
    const middleEnd = wideEnd === end ? end : Math.max(start, alignDown(end, align));
    if (offset < start || middleEnd < end) this.#requireSlow(offset, length, options);
    if (offset < start) await this.#readChangeWrite(offset, new Uint8Array(start - offset), options);
    if (start < middleEnd) await this.#zeroMiddle(start, middleEnd - start, options);
    if (middleEnd < end) await this.#readChangeWrite(middleEnd, new Uint8Array(end - middleEnd), options);
  }

  #zeroMiddle(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    const { zeroAlign, maxZero } = this.#requires;
    const body =
      zeroAlign <= 1 && (maxZero === 0 || length <= maxZero)
        ? (): Pending => this.zeroAligned(offset, length, options)
        : (): Pending => this.#zeroParts(offset, length, options);
    return this.hasStep('pwritev_zero') || this.hasStep('pwritev_done')
      ? this.#withSteps('pwritev_zero', body)
      : body();
  }

  /** Cut at multiples of the unit; what is less than one is written. */
  async #zeroParts(offset: number, length: number, options: ZeroOptions | undefined): Promise<void> {
    const { zeroAlign, maxZero } = this.#requires;
    const unit = Math.max(zeroAlign, this.#align);
    const end = offset + length;
    for (let at = offset; at < end; ) {
      let part = end - at;
      if (at % unit !== 0) part = Math.min(part, unit - (at % unit));
      else if (part > unit) part = alignDown(part, unit);
      if (maxZero > 0) part = Math.min(part, maxZero);
      if (part >= unit) await this.zeroAligned(at, part, options);
      else {
        this.#requireSlow(at, part, options);
        const zeros = new Uint8Array(Math.min(part, ZERO_CHUNK));
        await inTurn(part, zeros.length, (from, count) =>
          this.#writeParts(at + from, zeros.subarray(0, count), options, undefined),
        );
      }
      at += part;
    }
  }

  #requireSlow(offset: number, length: number, options: ZeroOptions | undefined): void {
    if (options?.fastOnly !== true) return;
    throw new BlockError(
      'UNSUPPORTED',
      `${this.driver} "${this.name}": ${hex(length)} bytes at ${hex(offset)} cannot be zeroed without writing`,
      { reason: 'aligned.fast-zero', details: { offset, length } },
    );
  }

  protected override _discard(offset: number, length: number, options: IoOptions | undefined): Pending {
    const { discardAlign, maxDiscard } = this.#requires;
    if (this.#align === 1 && discardAlign <= 1 && (maxDiscard === 0 || length <= maxDiscard)) {
      return this.discardAligned(offset, length, options);
    }
    // A hint: of blocks that are not covered in full nothing is said.
    const start = alignUp(offset, this.#align);
    const end = offset + length === this.size ? offset + length : alignDown(offset + length, this.#align);
    if (start >= end) return undefined;
    return this.#locked(start, end - start, () => this.#discardParts(start, end, options));
  }

  async #discardParts(start: number, end: number, options: IoOptions | undefined): Promise<void> {
    const { discardAlign, maxDiscard } = this.#requires;
    const unit = Math.max(discardAlign, this.#align);
    for (let at = start; at < end; ) {
      let part = end - at;
      if (at % unit !== 0) part = Math.min(part, unit - (at % unit));
      else if (part > unit) part = alignDown(part, unit);
      if (maxDiscard > 0) part = Math.min(part, maxDiscard);
      await this.discardAligned(at, part, options);
      at += part;
    }
  }
}

/** Part after part: the first that fails is the last that is tried. */
async function inTurn(length: number, step: number, part: (at: number, length: number) => Pending): Promise<void> {
  for (let at = 0; at < length; at += step) await part(at, Math.min(step, length - at));
}
