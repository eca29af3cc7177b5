/** What happens to a disk of the matrix: the same history for qemu-io, for our own writer, and for a model of bytes. */
import { BlockError } from '../../src/base/errors.ts';
import type { Image } from '../../src/image/image.ts';
import { below } from '../../src/testing/random.ts';
import { backingSizeOf, type Case, KiB, windowsOf } from './qcow2-cases.ts';

export interface Operation {
  readonly kind: 'write' | 'zero' | 'discard' | 'compressed';
  readonly offset: number;
  readonly length: number;
  readonly pattern: number;
  /** Of zeroes: space may be given back. */
  readonly unmap: boolean;
}

/** A history over the case's windows; what it contains is the case's `fill`.
 *  @param mixed compressed writes come at any time, over anything: QEMU 7.2 refuses some of these and damages its own image on others
 *  (it goes on packing into a cluster that was freed and has become a table), so for it they come first, and once for each cluster */
export function historyOf(it: Case, random: () => number, mixed: boolean): Operation[] {
  const history = new History(it, random);
  const windows = windowsOf(it);
  if (it.fill === 'compressed') for (const [start, end] of windows) history.compress(start, end);
  for (const [start, end] of windows) history.write(start, end, mixed);
  return history.operations;
}

class History {
  readonly operations: Operation[] = [];
  readonly #case: Case;
  readonly #random: () => number;

  constructor(it: Case, random: () => number) {
    this.#case = it;
    this.#random = random;
  }

  #add(kind: Operation['kind'], offset: number, length: number): void {
    if (length <= 0) return;
    const pattern = 1 + below(this.#random, 255);
    this.operations.push({ kind, offset, length, pattern, unmap: this.#random() < 0.5 });
  }

  /** Every other run of clusters of the window, each once. */
  compress(start: number, end: number): void {
    const { clusterSize } = this.#case;
    for (let at = start - (start % clusterSize); at < end; at += clusterSize * (2 + below(this.#random, 3))) {
      if (at >= start) this.#add('compressed', at, Math.min(clusterSize * (1 + below(this.#random, 2)), end - at));
    }
  }

  write(start: number, end: number, mixed: boolean): void {
    const { clusterSize, fill } = this.#case;
    const kinds = KINDS[mixed && fill === 'compressed' ? 'mixed' : fill];
    for (let i = 0; i < 8; i++) {
      const kind = kinds[i % kinds.length] as Operation['kind'];
      const aligns = [1, 512, clusterSize, Math.max(512, clusterSize / 32)];
      const align = kind === 'compressed' ? clusterSize : (aligns[below(this.#random, 4)] as number);
      const at = start + below(this.#random, end - start);
      const from = Math.max(start, at - (at % align));
      const length = align === 1 ? 1 + below(this.#random, 3 * clusterSize) : align * (1 + below(this.#random, 4));
      // compressed are whole clusters
      if (kind !== 'compressed' || from % clusterSize === 0) this.#add(kind, from, Math.min(length, end - from));
    }
  }
}

const KINDS: Readonly<Record<Case['fill'] | 'mixed', readonly Operation['kind'][]>> = {
  writes: ['write'],
  zeroes: ['write', 'zero'],
  discards: ['write', 'zero', 'write', 'discard'],
  compressed: ['write', 'write', 'zero'],
  mixed: ['write', 'compressed', 'zero', 'discard', 'compressed'],
  converted: [],
};

/** For `qemu-io -c`. */
export function toQemuIo({ kind, offset, length, pattern, unmap }: Operation): string {
  switch (kind) {
    case 'write':
      return `write -P ${pattern} ${offset} ${length}`;
    case 'compressed':
      return `write -c -P ${pattern} ${offset} ${length}`;
    case 'zero':
      return `write -z ${unmap ? '-u ' : ''}${offset} ${length}`;
    case 'discard':
      return `discard ${offset} ${length}`;
  }
}

/** The interesting parts of a disk as bytes. */
export class Model {
  readonly windows: readonly { readonly start: number; readonly bytes: Buffer }[];

  constructor(it: Case) {
    this.windows = windowsOf(it).map(([start, end]) => ({ start, bytes: Buffer.alloc(end - start) }));
    for (const { offset, length, pattern } of baseContent(it)) this.fill(offset, length, pattern);
  }

  fill(offset: number, length: number, pattern: number): void {
    for (const { start, bytes } of this.windows) {
      const from = Math.max(offset, start);
      const to = Math.min(offset + length, start + bytes.length);
      if (from < to) bytes.fill(pattern, from - start, to - start);
    }
  }

  /** Does it to our image and to the model. What a discard leaves is old or zero, byte by byte, and nothing else. */
  async apply(operation: Operation, image: Image): Promise<void> {
    const { kind, offset, length, pattern, unmap } = operation;
    if (kind === 'write' || kind === 'compressed') {
      this.fill(offset, length, pattern);
      await image.write(offset, new Uint8Array(length).fill(pattern), { compressed: kind === 'compressed' });
    } else if (kind === 'zero') {
      this.fill(offset, length, 0);
      await image.writeZeroes(offset, length, { unmap });
    } else {
      await image.discard(offset, length);
      for (const { start, bytes } of this.windows) {
        const now = await image.read(start, bytes.length);
        for (let i = 0; i < bytes.length; i++) {
          const inside = start + i >= offset && start + i < offset + length;
          if (now[i] !== bytes[i] && !(inside && now[i] === 0)) {
            throw new BlockError(
              'CORRUPT',
              `a discard of ${length} bytes at ${offset} changed the byte at ${start + i}`,
            );
          }
        }
        bytes.set(now);
      }
    }
  }
}

/** What the backing file holds: half of each window, as far as it reaches. */
export function baseContent(
  it: Case,
): { readonly offset: number; readonly length: number; readonly pattern: number }[] {
  const size = backingSizeOf(it);
  return windowsOf(it).flatMap(([start, end], index) => {
    const pieces = [
      { offset: start, to: start + Math.floor((end - start) / 3), pattern: 0xb0 + index },
      { offset: start + Math.floor((end - start) / 2) + 11, to: end + it.clusterSize, pattern: 0xc0 + index },
    ];
    return pieces
      .map(({ offset, to, pattern }) => ({ offset, length: Math.min(to, size) - offset, pattern }))
      .filter(({ length }) => length > 0);
  });
}

/** Source of a conversion, as a raw disk: some clusters of data, some of zeros. */
export function rawSource(it: Case, size: number, random: () => number): Buffer {
  const bytes = Buffer.alloc(size);
  const step = Math.max(4 * KiB, it.clusterSize);
  for (let at = 0; at < size; at += step) {
    if (random() < 0.6) bytes.fill(1 + below(random, 255), at, Math.min(size, at + step - below(random, 3) * 512));
    // bytes that do not compress
    if (random() < 0.3) for (let i = at; i < Math.min(size, at + step); i++) bytes[i] = below(random, 256);
  }
  return bytes;
}
