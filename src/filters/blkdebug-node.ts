/** The node of blkdebug: announces what is written to it, and asks the rules before every request. Owns nothing of the rules themselves.
 *  Invariants: a request that a rule fails has not reached the file; events are not passed on below, as in QEMU: the filter nearest to the format
 *  has them; a flush with nothing to be flushed asks no rule. */
import type { Pending } from '../base/async.ts';
import type { Breakpoints } from '../core/breakpoints.ts';
import type { ExtentList } from '../core/extent.ts';
import type { BlockNode } from '../core/node.ts';
import type {
  BlockEvent,
  IoOptions,
  StoreStatus,
  StoreSupports,
  TruncateOptions,
  WriteOptions,
  ZeroOptions,
} from '../core/store.ts';
import { AlignedNode, type Requirements } from './aligned-node.ts';
import type { IoType } from './blkdebug-events.ts';
import type { RuleMachine } from './blkdebug-machine.ts';

export class BlkdebugNode extends AlignedNode {
  readonly #machine: RuleMachine;
  /** Counts changes; what was flushed is compared with it. */
  #changes = 0;
  #flushed = 0;

  constructor(name: string, image: BlockNode, requires: Requirements, machine: RuleMachine) {
    super(name, 'blkdebug', image, requires, { name: 'image', role: 'file' });
    this.#machine = machine;
  }

  get breakpoints(): Breakpoints {
    return this.#machine;
  }

  override get supports(): StoreSupports {
    return { ...this.inner.supports, sync: false };
  }

  /** How much of it is occupied is not told, as QEMU has it. */
  override async status(): Promise<StoreStatus> {
    const { allocatedBytes: _, ...rest } = await super.status();
    return rest;
  }

  override event(name: BlockEvent): Pending {
    return this.#machine.announce(name);
  }

  protected override step(event: BlockEvent): Pending {
    return this.#machine.announce(event);
  }

  protected override hasStep(event: BlockEvent): boolean {
    return this.#machine.listens(event);
  }

  protected override readAligned(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    return this.#asked('read', offset, into.length) ?? this.inner.read(offset, into, options);
  }

  protected override writeAligned(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    this.#changes++;
    return this.#asked('write', offset, from.length) ?? this.inner.write(offset, from, options);
  }

  protected override zeroAligned(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    this.#changes++;
    return this.#asked('write-zeroes', offset, length) ?? this.inner.writeZeroes(offset, length, options);
  }

  protected override discardAligned(offset: number, length: number, options: IoOptions | undefined): Pending {
    this.#changes++;
    return this.#asked('discard', offset, length) ?? this.inner.discard(offset, length, options);
  }

  protected override _extents(offset: number, length: number, into: ExtentList, options?: IoOptions): Pending {
    return this.#asked('block-status', offset, length) ?? this.inner.extents(offset, length, into, options);
  }

  protected override _truncate(size: number, options: TruncateOptions | undefined): Pending {
    this.#changes++;
    return this.inner.truncate(size, options);
  }

  protected override _flush(options: IoOptions | undefined): Pending {
    const upTo = this.#changes;
    const refused = this.#flushed === upTo ? undefined : this.#asked('flush', 0, 0);
    if (refused !== undefined) return refused;
    const flushed = this.inner.flush(options);
    if (flushed !== undefined) return this.#noteFlushed(flushed, upTo);
    this.#flushed = upTo;
    return undefined;
  }

  async #noteFlushed(flushed: Promise<void>, upTo: number): Promise<void> {
    await flushed;
    this.#flushed = Math.max(this.#flushed, upTo);
  }

  /** What a rule says is a failure, always; nothing is waited for otherwise. */
  #asked(ioType: IoType, offset: number, length: number): Pending {
    return this.#machine.check(ioType, offset, length);
  }

  protected override async _close(): Promise<void> {
    this.#machine.close();
  }
}
