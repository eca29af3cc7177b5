/** A window of a store as a store: embedded images, raw images with an offset. Owns the shift and the two edges.
 *  Invariant: no request reaches a byte of the store outside the window. */
import type { Pending } from '../base/async.ts';
import { BlockError, hex } from '../base/errors.ts';
import { EXTENT, ExtentList } from '../core/extent.ts';
import type { BlockNode, Child } from '../core/node.ts';
import {
  BaseStore,
  type BlockEvent,
  type IoOptions,
  type StoreLimits,
  type StoreStatus,
  type StoreSupports,
  type TruncateOptions,
  type WriteOptions,
  type ZeroOptions,
} from '../core/store.ts';

export interface SliceOptions {
  /** Where the window begins in the store, bytes; a multiple of the store's `requestAlign`. */
  readonly offset: number;
  /** Its size, bytes; without it the window goes to the end of the store, and grows with it. */
  readonly size?: number;
  /** What messages call it; the store's name by default. */
  readonly name?: string;
  /** Leave the store open at `close`. */
  readonly keepOpen?: boolean;
}

export class SliceStore extends BaseStore {
  readonly limits: StoreLimits;
  readonly supports: StoreSupports;
  override readonly children: readonly Child[];
  readonly status?: () => Promise<StoreStatus>;
  readonly writev?: (offset: number, parts: readonly Uint8Array[], options?: WriteOptions) => Pending;
  readonly event?: (name: BlockEvent) => Pending;
  readonly #inner: BlockNode;
  readonly #start: number;
  readonly #fixed: number | undefined;
  readonly #keepOpen: boolean;

  /** Takes over `inner` unless `keepOpen`.
   *  @throws {@link BlockError} OUT_OF_RANGE for a window outside the store, INVALID_ARGUMENT for one that breaks its alignment. */
  constructor(inner: BlockNode, options: SliceOptions) {
    super(options.name ?? inner.name, 'slice');
    const { offset, size } = options;
    const align = inner.limits.requestAlign;
    if (!(Number.isSafeInteger(offset) && offset >= 0 && offset + (size ?? 0) <= inner.size && (size ?? 0) >= 0)) {
      throw new BlockError(
        'OUT_OF_RANGE',
        `"${this.name}": window of ${size ?? 'all'} bytes at ${offset} is not inside ${hex(inner.size)} bytes`,
        { reason: 'slice.range', details: { offset, size, available: inner.size } },
      );
    }
    if (offset % align !== 0 || (size ?? 0) % align !== 0) {
      throw new BlockError('INVALID_ARGUMENT', `"${this.name}": window at ${hex(offset)} is not aligned to ${align}`, {
        reason: 'slice.align',
        details: { offset, size, align },
      });
    }
    this.#inner = inner;
    this.#start = offset;
    this.#fixed = size;
    this.#keepOpen = options.keepOpen === true;
    this.children = [{ role: 'file', name: 'file', node: inner }];
    this.limits = inner.limits;
    this.supports = windowSupports(inner.supports, size !== undefined);
    if (inner.status !== undefined) this.status = () => this.#status();
    if (inner.writev !== undefined) this.writev = (at, parts, writeOptions) => this.#writev(at, parts, writeOptions);
    if (inner.event !== undefined) this.event = (name) => this.#inner.event?.(name);
  }

  get size(): number {
    return this.#fixed ?? Math.max(this.#inner.size - this.#start, 0);
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    const inside = this.#inside(offset, into.length);
    if (inside === into.length) return this.#inner.read(this.#start + offset, into, options);
    // the store goes on after the window: those bytes are nobody's business here
    into.fill(0, inside);
    return inside === 0 ? undefined : this.#inner.read(this.#start + offset, into.subarray(0, inside), options);
  }

  protected _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.#inner.write(this.#start + offset, from, options);
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    return this.#inner.writeZeroes(this.#start + offset, length, options);
  }

  protected _discard(offset: number, length: number, options: IoOptions | undefined): Pending {
    return this.#inner.discard(this.#start + offset, length, options);
  }

  protected _extents(offset: number, length: number, into: ExtentList, options: IoOptions | undefined): Pending {
    const inside = this.#inside(offset, length);
    if (inside === 0) {
      into.add(length, EXTENT.present + EXTENT.zero);
      return undefined;
    }
    const found = new ExtentList(into.capacity);
    found.reset(this.#start + offset);
    const pending = this.#inner.extents(this.#start + offset, inside, found, options);
    if (pending === undefined) {
      this.#addFound(found, inside, length, into);
      return undefined;
    }
    return this.#addLater(pending, found, inside, length, into);
  }

  protected _flush(options: IoOptions | undefined): Pending {
    return this.#inner.flush(options);
  }

  protected _truncate(size: number, options: TruncateOptions | undefined): Pending {
    return this.#inner.truncate(this.#start + size, options);
  }

  protected _close(): Promise<void> {
    return this.#keepOpen ? Promise.resolve() : this.#inner.close();
  }

  /** How much of a request a window of fixed size lets through; the store knows its own end. */
  #inside(offset: number, length: number): number {
    return this.#fixed === undefined ? length : Math.min(Math.max(this.#fixed - offset, 0), length);
  }

  #writev(offset: number, parts: readonly Uint8Array[], options: WriteOptions | undefined): Pending {
    let total = 0;
    for (const part of parts) total += part.length;
    this.checkWrite('write', offset, total);
    return total === 0 ? undefined : this.#inner.writev?.(this.#start + offset, parts, options);
  }

  async #status(): Promise<StoreStatus> {
    if (this.closed) throw new BlockError('CLOSED', `"${this.name}": status after close`);
    const whole = await this.#inner.status?.();
    // how much of the allocated space lies in the window is not known, and a window is not the same thing as its store
    return whole?.modifiedSeconds === undefined ? {} : { modifiedSeconds: whole.modifiedSeconds };
  }

  async #addLater(
    pending: Promise<void>,
    found: ExtentList,
    inside: number,
    length: number,
    into: ExtentList,
  ): Promise<void> {
    await pending;
    this.#addFound(found, inside, length, into);
  }

  #addFound(found: ExtentList, inside: number, length: number, into: ExtentList): void {
    let covered = 0;
    for (let i = 0; i < found.count; i++) {
      const part = Math.min(found.lengthAt(i), inside - covered);
      if (!into.add(part, found.flagsAt(i), found.hostOffsetAt(i), found.nodeAt(i), found.depthAt(i))) return;
      covered += part;
    }
    if (covered === inside && inside < length) into.add(length - inside, EXTENT.present + EXTENT.zero);
  }
}

function windowSupports(inner: StoreSupports, fixed: boolean): StoreSupports {
  return {
    write: inner.write,
    truncate: inner.truncate && !fixed,
    get writeZeroes() {
      return inner.writeZeroes;
    },
    get discard() {
      return inner.discard;
    },
    get extents() {
      return inner.extents;
    },
    fua: inner.fua,
    sync: inner.sync,
    access: inner.access,
  };
}
