/** A filter or a protocol at the top of a graph, as the format of an image: every byte lies where the guest sees it, in the one node below.
 *  Invariants: guest offset and host offset are the same; what the node below says of its content stands as it is. */
import type { Pending } from '../base/async.ts';
import { alignUp } from '../bytes/align.ts';
import { defineFormat, type FormatDriver, type FormatInfo, type FormatNode, type WritePlan } from '../core/format.ts';
import { type BlockNode, type Child, formatBelow } from '../core/node.ts';
import type { RunList } from '../core/run.ts';
import type { Preallocation, ZeroOptions } from '../core/store.ts';

const SECTOR = 512;

class PassThroughNode implements FormatNode {
  readonly format: string;
  readonly unit = 1;
  readonly zeroUnit = 1;
  readonly recurse: 'status' | 'through';
  readonly readOnly: boolean;
  readonly children: readonly Child[];
  readonly #inner: BlockNode;

  constructor(inner: BlockNode, readOnly: boolean) {
    this.format = inner.driver;
    this.readOnly = readOnly;
    this.children = [{ role: 'file', name: 'file', node: inner }];
    this.recurse = formatBelow(inner) === undefined ? 'status' : 'through';
    this.#inner = inner;
  }

  /** In whole sectors, as QEMU has it. */
  get virtualSize(): number {
    return alignUp(this.#inner.size, SECTOR);
  }

  map(offset: number, length: number, into: RunList): Pending {
    into.push('data', length, 0, offset, true);
    return undefined;
  }

  prepareWrite(offset: number, length: number): WritePlan {
    return { guestOffset: offset, length, child: 0, hostOffset: offset, headLength: 0, tailLength: 0 };
  }

  commitWrite(): undefined {
    return undefined;
  }

  async writeCompressed(offset: number, from: Uint8Array): Promise<void> {
    await this.#inner.write(offset, from, { compressed: true });
  }

  async mapZeroes(offset: number, length: number, options: ZeroOptions): Promise<'done'> {
    await this.#inner.writeZeroes(offset, length, options);
    return 'done';
  }

  /** What a discarded range reads as afterwards the node below decides. */
  async unmap(offset: number, length: number, reveal: 'zero' | 'backing'): Promise<'done' | 'unsupported'> {
    if (reveal === 'backing') return 'unsupported';
    await this.#inner.discard(offset, length);
    return 'done';
  }

  async resize(virtualSize: number, preallocation: Preallocation | 'metadata'): Promise<void> {
    await this.#inner.truncate(virtualSize, preallocation === 'metadata' ? {} : { preallocation });
  }

  flush(): Pending {
    return this.#inner.flush();
  }

  async close(): Promise<void> {}

  async info(): Promise<FormatInfo> {
    const below = await formatBelow(this.#inner)?.info();
    return below?.clusterSize === undefined ? {} : { clusterSize: below.clusterSize };
  }
}

/** The format of an image whose top is no format. */
export function passThrough(name: string): FormatDriver {
  return defineFormat({
    name,
    summary: 'what stands below, unchanged',
    extensions: [],
    capabilities: {
      create: false,
      write: true,
      backing: false,
      compress: true,
      check: false,
      zeroInit: false,
      fileUse: 'passes',
    },
    openOptions: {},
    createOptions: {},
    probe: () => 0,
    open: async ({ file, readOnly }) => new PassThroughNode(file, readOnly),
  }) as FormatDriver;
}
