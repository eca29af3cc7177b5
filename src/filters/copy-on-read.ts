/** copy-on-read: what is read from backing files is kept in the image above them.
 *  Behaviour: QEMU's `copy-on-read` filter: whole clusters are copied, zeros as zeros; `bottom` names the last layer that is copied from.
 *  Invariants: a range is copied up only while no write to any part of it runs, and writes wait for copies: what a guest writes is never
 *  overwritten by what was there before; a read ends only when what it copies is written. */
import type { Pending } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { defineOptions, text } from '../base/options.ts';
import { MiB } from '../base/sizes.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { isZero } from '../bytes/zeros.ts';
import { ExtentList } from '../core/extent.ts';
import { defineFilter } from '../core/filter.ts';
import { MappedNode } from '../core/mapped-node.ts';
import { type BlockNode, childOf } from '../core/node.ts';
import { RangeLock } from '../core/range-lock.ts';
import type { IoOptions, StoreSupports, TruncateOptions, WriteOptions, ZeroOptions } from '../core/store.ts';
import { FilterNode } from './filter-node.ts';

/** Bytes that are copied at a time, at least one cluster. */
const CHUNK = MiB;

/** Part of a range, and whether it is to be copied. */
interface Part {
  readonly start: number;
  readonly end: number;
  readonly copied: boolean;
}

export class CopyOnReadNode extends FilterNode {
  /** The layer that is copied into; `undefined` where the child is no image, and nothing can be missing. */
  readonly #layer: MappedNode | undefined;
  /** Layers below it that are copied from; `undefined`: all. */
  readonly #depth: number | undefined;
  readonly #lock = new RangeLock();

  /** @param depth how many layers below the image are copied from; all by default */
  constructor(name: string, file: BlockNode, depth?: number) {
    super(name, 'copy-on-read', file);
    this.#layer = layerOf(file);
    this.#depth = depth;
  }

  override get supports(): StoreSupports {
    const { supports } = this.inner;
    return this.#layer === undefined ? supports : { ...supports, sync: false };
  }

  protected override _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    const layer = this.#layer;
    if (layer === undefined || offset + into.length > this.size) return super._read(offset, into, options);
    return this.#readAndCopy(layer, offset, into, options);
  }

  protected override _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.#alone(offset, offset + from.length, () => super._write(offset, from, options));
  }

  protected override _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    return this.#alone(offset, offset + length, () => super._writeZeroes(offset, length, options));
  }

  protected override _discard(offset: number, length: number, options: IoOptions | undefined): Pending {
    return this.#alone(offset, offset + length, () => super._discard(offset, length, options));
  }

  protected override _truncate(size: number, options: TruncateOptions | undefined): Pending {
    return this.#alone(0, Number.MAX_SAFE_INTEGER, () => super._truncate(size, options));
  }

  #alone(start: number, end: number, body: () => Pending): Pending {
    const ticket = this.#lock.acquire(start, end);
    let pending: Pending;
    try {
      pending = ticket.waiting === undefined ? body() : afterwards(ticket.waiting, body);
    } catch (error) {
      this.#lock.release(ticket);
      throw error;
    }
    if (pending !== undefined) return pending.finally(() => this.#lock.release(ticket));
    this.#lock.release(ticket);
    return undefined;
  }

  async #readAndCopy(
    layer: MappedNode,
    offset: number,
    into: Uint8Array,
    options: IoOptions | undefined,
  ): Promise<void> {
    const { unit } = layer.format;
    const start = alignDown(offset, unit);
    const end = Math.min(this.size, alignUp(offset + into.length, unit));
    if (!(await this.#parts(layer, start, end)).some(({ copied }) => copied)) {
      await super._read(offset, into, options);
      return;
    }
    await this.#alone(start, end, async () => {
      // Asked again: what was missing may have been written meanwhile.
      for (const part of await this.#parts(layer, start, end)) {
        if (part.copied) await this.#copy(part, unit, offset, into, options);
        else await this.#readInto(part.start, part.end, offset, into, options);
      }
    });
  }

  /** The parts of a range of whole clusters, in order. */
  async #parts(layer: MappedNode, start: number, end: number): Promise<Part[]> {
    const parts: Part[] = [];
    const add = (from: number, to: number, copied: boolean): void => {
      const last = parts.at(-1);
      if (last !== undefined && last.copied === copied) parts[parts.length - 1] = { ...last, end: to };
      else parts.push({ start: from, end: to, copied });
    };
    const list = new ExtentList();
    for (let at = start; at < end; at = list.end) {
      list.reset(at);
      if (this.#depth === undefined) await layer.layerExtents(at, end - at, list);
      else await layer.extents(at, end - at, list);
      for (const { start: from, length, present, depth } of list) {
        const copied = this.#depth === undefined ? !present : present && depth > 0 && depth <= this.#depth;
        add(from, from + length, copied);
      }
    }
    return parts;
  }

  async #copy(
    { start, end }: Part,
    unit: number,
    offset: number,
    into: Uint8Array,
    options: IoOptions | undefined,
  ): Promise<void> {
    const chunk = new Uint8Array(Math.min(end - start, alignUp(CHUNK, unit)));
    for (let at = start; at < end; at += chunk.length) {
      const bytes = chunk.subarray(0, Math.min(chunk.length, end - at));
      await super._read(at, bytes, options);
      if (isZero(bytes)) await super._writeZeroes(at, bytes.length, options);
      else await super._write(at, bytes, options);
      const from = Math.max(at, offset);
      const to = Math.min(at + bytes.length, offset + into.length);
      if (from < to) into.set(bytes.subarray(from - at, to - at), from - offset);
    }
  }

  async #readInto(
    start: number,
    end: number,
    offset: number,
    into: Uint8Array,
    options: IoOptions | undefined,
  ): Promise<void> {
    const from = Math.max(start, offset);
    const to = Math.min(end, offset + into.length);
    if (from < to) await super._read(from, into.subarray(from - offset, to - offset), options);
  }
}

async function afterwards(waiting: Promise<void>, body: () => Pending): Promise<void> {
  await waiting;
  await body();
}

/** The image that a node shows, through filters that change no content. */
function layerOf(node: BlockNode): MappedNode | undefined {
  if (node instanceof MappedNode) return node;
  return node instanceof FilterNode ? layerOf(node.children[0]?.node as BlockNode) : undefined;
}

/** How many steps down the backing chain a layer lies; `undefined` where it is not part of it. */
function depthOf(top: BlockNode, bottom: BlockNode): number | undefined {
  let depth = 0;
  for (let at: BlockNode | undefined = layerOf(top); at !== undefined; depth++) {
    if (at === bottom) return depth;
    const below: BlockNode | undefined = childOf(at, 'backing');
    at = below === undefined ? undefined : (layerOf(below) ?? below);
  }
  return undefined;
}

export const copyOnRead = defineFilter({
  name: 'copy-on-read',
  summary: 'keeps what is read from backing files in the image above them',
  children: [{ name: 'file', role: 'file', probed: 'never' }],
  openOptions: defineOptions({
    bottom: text({ help: 'node name of the last layer that is copied from; all of them when not given' }),
  }),
  listOptions: {},
  async open(context, options) {
    const { name, readOnly } = context;
    if (readOnly) {
      throw new BlockError('READ_ONLY', `copy-on-read "${name}": the node is read-only, and reads are to be kept`, {
        reason: 'store.read-only',
      });
    }
    const [file] = context.children('file') as readonly [BlockNode];
    if (options.bottom === undefined) return new CopyOnReadNode(name, file);
    const bottom = context.nodeNamed(options.bottom);
    const details = { bottom: options.bottom };
    if (bottom === undefined) {
      throw new BlockError('NOT_FOUND', `copy-on-read "${name}": there is no node "${options.bottom}"`, {
        reason: 'copy-on-read.bottom',
        details,
      });
    }
    if (bottom instanceof FilterNode) {
      throw new BlockError('INVALID_ARGUMENT', `copy-on-read "${name}": bottom "${options.bottom}" is a filter`, {
        reason: 'copy-on-read.bottom-filter',
        details,
      });
    }
    const depth = depthOf(file, bottom);
    if (depth === undefined) {
      throw new BlockError(
        'INVALID_ARGUMENT',
        `copy-on-read "${name}": bottom "${options.bottom}" is not in the backing chain`,
        { reason: 'copy-on-read.bottom-chain', details },
      );
    }
    return new CopyOnReadNode(name, file, depth);
  },
});
