/** What all filters of one child share: every request goes on to the child unchanged, and a filter overrides what it changes.
 *  Invariant: nothing is added to a request and nothing is kept of it; the child is never closed here, it belongs to whoever built the graph. */
import type { Pending } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import type { ExtentList } from '../core/extent.ts';
import type { BlockNode, Child, ChildRole } from '../core/node.ts';
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

export class FilterNode extends BaseStore {
  override readonly children: readonly Child[];
  protected readonly inner: BlockNode;

  /** @param driver name of the filter's driver
   *  @param child what the child is called in options, and what it is to the filter */
  constructor(
    name: string,
    driver: string,
    inner: BlockNode,
    child: { readonly name: string; readonly role: ChildRole } = { name: 'file', role: 'file' },
  ) {
    super(name, driver);
    this.inner = inner;
    this.children = [{ ...child, node: inner }];
  }

  get size(): number {
    return this.inner.size;
  }

  get limits(): StoreLimits {
    return this.inner.limits;
  }

  get supports(): StoreSupports {
    return this.inner.supports;
  }

  async status(): Promise<StoreStatus> {
    if (this.closed) throw new BlockError('CLOSED', `"${this.name}": status after close`);
    return (await this.inner.status?.()) ?? {};
  }

  event(name: BlockEvent): Pending {
    return this.inner.event?.(name);
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    return this.inner.read(offset, into, options);
  }

  protected _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.inner.write(offset, from, options);
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    return this.inner.writeZeroes(offset, length, options);
  }

  protected _discard(offset: number, length: number, options: IoOptions | undefined): Pending {
    return this.inner.discard(offset, length, options);
  }

  protected _extents(offset: number, length: number, into: ExtentList, options: IoOptions | undefined): Pending {
    return this.inner.extents(offset, length, into, options);
  }

  protected _flush(options: IoOptions | undefined): Pending {
    return this.inner.flush(options);
  }

  protected _truncate(size: number, options: TruncateOptions | undefined): Pending {
    return this.inner.truncate(size, options);
  }

  protected async _close(): Promise<void> {}
}
