/** An opened raw image: one data run, the whole disk. Spec: none; behaviour: QEMU's raw driver.
 *  Invariant: guest offset + window offset = host offset, everywhere, always. */
import type { Pending } from '../../base/async.ts';
import { BlockError, isBlockError } from '../../base/errors.ts';
import { alignUp } from '../../bytes/align.ts';
import type { FormatInfo, FormatNode, WritePlan } from '../../core/format.ts';
import { type BlockNode, type Child, formatBelow } from '../../core/node.ts';
import type { RunList } from '../../core/run.ts';
import type { Preallocation, ZeroOptions } from '../../core/store.ts';

const SECTOR = 512;

export class RawNode implements FormatNode {
  readonly format = 'raw';
  readonly unit = 1;
  readonly zeroUnit = 1;
  readonly recurse: 'status' | 'through';
  readonly readOnly: boolean;
  readonly children: readonly Child[];
  readonly #file: BlockNode;
  readonly #name: string;
  readonly #offset: number;
  /** Bytes; `undefined`: to the end of the file. */
  readonly #window: number | undefined;

  constructor(file: BlockNode, name: string, readOnly: boolean, offset: number, window: number | undefined) {
    this.#file = file;
    this.recurse = formatBelow(file) === undefined ? 'status' : 'through';
    this.#name = name;
    this.readOnly = readOnly;
    this.#offset = offset;
    this.#window = window;
    this.children = [{ role: 'file', name: 'file', node: file }];
  }

  /** The file's size rounded up to sectors, as QEMU reports it. */
  get virtualSize(): number {
    return this.#window ?? alignUp(this.#file.size - this.#offset, SECTOR);
  }

  map(offset: number, length: number, into: RunList): Pending {
    into.push('data', length, 0, this.#offset + offset, true);
    return undefined;
  }

  /** Every byte has its place already: the plan is the identity, and there is nothing to publish. */
  prepareWrite(offset: number, length: number): WritePlan {
    return { guestOffset: offset, length, child: 0, hostOffset: this.#offset + offset, headLength: 0, tailLength: 0 };
  }

  commitWrite(): undefined {
    return undefined;
  }

  mapZeroes(offset: number, length: number, options: ZeroOptions): 'done' | Promise<'done'> {
    const pending = this.#file.writeZeroes(this.#offset + offset, length, options);
    return pending === undefined ? 'done' : done(pending);
  }

  unmap(offset: number, length: number, reveal: 'zero' | 'backing'): Promise<'done' | 'unsupported'> {
    return reveal === 'zero' ? this.#punch(this.#offset + offset, length) : Promise.resolve('unsupported');
  }

  /** A discarded range must read as zero here, so only a store that can do that cheaply does it. */
  async #punch(hostOffset: number, length: number): Promise<'done' | 'unsupported'> {
    try {
      await this.#file.writeZeroes(hostOffset, length, { unmap: true, fastOnly: true });
      return 'done';
    } catch (error) {
      if (isBlockError(error) && error.code === 'UNSUPPORTED') return 'unsupported';
      throw error;
    }
  }

  async resize(virtualSize: number, preallocation: Preallocation | 'metadata'): Promise<void> {
    if (preallocation === 'metadata') {
      throw new BlockError('OPTION', `raw "${this.#name}": preallocation mode 'metadata' is not possible`, {
        reason: 'raw.preallocation',
        details: { mode: preallocation },
      });
    }
    if (this.#window !== undefined) {
      throw new BlockError('UNSUPPORTED', `raw "${this.#name}": a disk with a fixed size window cannot be resized`, {
        reason: 'raw.window-fixed',
      });
    }
    if (virtualSize > Number.MAX_SAFE_INTEGER - this.#offset) {
      throw new BlockError(
        'TOO_LARGE',
        `raw "${this.#name}": size ${virtualSize} is too large for offset ${this.#offset}`,
        {
          reason: 'raw.window-large',
          details: { size: virtualSize, offset: this.#offset },
        },
      );
    }
    await this.#file.truncate(this.#offset + virtualSize, { preallocation });
  }

  flush(): Pending {
    const announced = this.#file.event?.('flush_to_disk');
    if (announced !== undefined) return announced.then(() => this.#file.flush());
    return this.#file.flush();
  }

  async close(): Promise<void> {}

  async info(): Promise<FormatInfo> {
    const below = await formatBelow(this.#file)?.info();
    return { dirty: false, ...(below?.clusterSize === undefined ? {} : { clusterSize: below.clusterSize }) };
  }
}

async function done(pending: Promise<void>): Promise<'done'> {
  await pending;
  return 'done';
}
