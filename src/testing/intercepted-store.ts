/** A store in front of another one, where every call passes one method: what the recording and the fault store share.
 *  Invariants: the whole BlockNode contract reaches the store behind unchanged, facts (size, limits, supports, name, children)
 *  are its own, and optional members are there exactly when it has them (`event` always is: a fault may hang on an event
 *  that the store behind does not know). */
import type { Pending } from '../base/async.ts';
import type { ExtentList } from '../core/extent.ts';
import type { FormatNode } from '../core/format.ts';
import type { BlockNode, Child } from '../core/node.ts';
import type {
  BlockEvent,
  IoOptions,
  StoreLimits,
  StoreStatus,
  StoreSupports,
  TruncateOptions,
  WriteOptions,
  ZeroOptions,
} from '../core/store.ts';

export type OperationKind =
  | 'read'
  | 'write'
  | 'zeroes'
  | 'discard'
  | 'extents'
  | 'flush'
  | 'truncate'
  | 'close'
  | 'event';

/** One call. Bytes; what a kind does not have is 0 or undefined. */
export interface Operation {
  readonly kind: OperationKind;
  /** For `truncate`: the new size. */
  readonly offset: number;
  readonly length: number;
  /** What is written: one buffer for `write`, several for `writev`. The caller's own buffers. */
  readonly parts: readonly Uint8Array[];
  readonly options: ZeroOptions & TruncateOptions;
  readonly event: BlockEvent | undefined;
}

const NO_OPTIONS = {};

export abstract class InterceptedStore implements BlockNode {
  readonly inner: BlockNode;
  readonly writev?: (offset: number, parts: readonly Uint8Array[], options?: WriteOptions) => Pending;
  readonly status?: () => Promise<StoreStatus>;
  readonly format?: FormatNode;
  readonly event: (name: BlockEvent) => Pending;

  constructor(inner: BlockNode) {
    this.inner = inner;
    if (inner.writev !== undefined) {
      this.writev = (offset, parts, options) => {
        let length = 0;
        for (const part of parts) length += part.length;
        const run = (): Pending => inner.writev?.(offset, parts, options);
        return this._around(operation('write', offset, length, options, parts), run);
      };
    }
    if (inner.status !== undefined) this.status = () => inner.status?.() ?? Promise.resolve({});
    if (inner.format !== undefined) this.format = inner.format;
    this.event = (name) => this._around({ ...operation('event', 0, 0), event: name }, () => inner.event?.(name));
  }

  /** Does what the wrapper is for; `run` makes the call behind, and may be called once or not at all. */
  protected abstract _around(operation: Operation, run: () => Pending): Pending;

  get name(): string {
    return this.inner.name;
  }

  get driver(): string {
    return this.inner.driver;
  }

  get children(): readonly Child[] {
    return this.inner.children;
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

  read(offset: number, into: Uint8Array, options?: IoOptions): Pending {
    const op = operation('read', offset, into.length, options);
    return this._around(op, () => this.inner.read(offset, into, options));
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Pending {
    const op = operation('write', offset, from.length, options, [from]);
    return this._around(op, () => this.inner.write(offset, from, options));
  }

  writeZeroes(offset: number, length: number, options?: ZeroOptions): Pending {
    const op = operation('zeroes', offset, length, options);
    return this._around(op, () => this.inner.writeZeroes(offset, length, options));
  }

  discard(offset: number, length: number, options?: IoOptions): Pending {
    const op = operation('discard', offset, length, options);
    return this._around(op, () => this.inner.discard(offset, length, options));
  }

  extents(offset: number, length: number, into: ExtentList, options?: IoOptions): Pending {
    const op = operation('extents', offset, length, options);
    return this._around(op, () => this.inner.extents(offset, length, into, options));
  }

  flush(options?: IoOptions): Pending {
    return this._around(operation('flush', 0, 0, options), () => this.inner.flush(options));
  }

  truncate(size: number, options?: TruncateOptions): Pending {
    const op = operation('truncate', size, 0, options);
    return this._around(op, () => this.inner.truncate(size, options));
  }

  async close(): Promise<void> {
    await this._around(operation('close', 0, 0), () => this.inner.close());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function operation(
  kind: OperationKind,
  offset: number,
  length: number,
  options: ZeroOptions & TruncateOptions = NO_OPTIONS,
  parts: readonly Uint8Array[] = [],
): Operation {
  return { kind, offset, length, parts, options, event: undefined };
}
