/** Random lives of bitmaps against flat models of them, over stores that end late and out of order, with the image closed and opened in between. */
import { describe, expect, it } from 'vitest';
import type { BitmapFacet } from '../../../src/core/format.ts';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { CacheBudget } from '../../../src/core/table-cache.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { LateStore } from '../../../src/testing/late-store.ts';
import { below, seededRandom } from '../../../src/testing/random.ts';
import { pattern } from '../../support/qcow2-parts.ts';
import { checkQcow2, createQcow2Bytes, openQcow2, type Qcow2Variant } from '../../support/qcow2-under-test.ts';
import { everySeed, SEED_TIMEOUT } from '../../support/seeds.ts';

const KiB = 1024;

/** What a bitmap ought to say: one boolean for each unit. */
interface Flat {
  readonly granularity: number;
  enabled: boolean;
  bits: boolean[];
}

class BitmapModel {
  readonly #variant: Qcow2Variant;
  readonly #random: () => number;
  readonly #flats = new Map<string, Flat>();
  #file = new MemoryStore();
  #node: MappedNode | undefined;
  #size: number;
  #next = 0;

  constructor(variant: Qcow2Variant, size: number, seed: number) {
    this.#variant = variant;
    this.#size = size;
    this.#random = seededRandom(seed);
  }

  async run(operations: number): Promise<void> {
    this.#file = await createQcow2Bytes(this.#size, this.#variant, false);
    await this.#open();
    for (let i = 0; i < operations; i++) {
      await this.#step();
      if (this.#random() < 0.15) await this.#verify(this.#alive);
    }
    await this.#reopen();
    await this.#verify(this.#alive);
    await this.#alive.close();
    expect(await checkQcow2(MemoryStore.from(this.#file.bytes()))).toMatchObject({
      lines: [],
      leaks: 0,
      checkErrors: 0,
    });
  }

  get #alive(): MappedNode {
    if (this.#node === undefined) throw new Error('not open');
    return this.#node;
  }

  get #unit(): number {
    return this.#variant.extendedL2 === true ? 16 * KiB : (this.#variant.clusterSize ?? 512);
  }

  async #open(): Promise<void> {
    const late = new LateStore({ seed: below(this.#random, 2 ** 31) }, this.#file);
    this.#node = await openQcow2(late, { cache: new CacheBudget(8 * KiB) });
  }

  async #reopen(): Promise<void> {
    await this.#alive.close();
    this.#file = this.#file.reopen();
    const readOnly = await openQcow2(MemoryStore.from(this.#file.bytes()), { readOnly: true });
    await this.#verify(readOnly);
    await readOnly.close();
    const { lines, checkErrors } = await checkQcow2(MemoryStore.from(this.#file.bytes()));
    expect({ lines, checkErrors }).toEqual({ lines: [], checkErrors: 0 });
    await this.#open();
  }

  #mark(flat: Flat, offset: number, length: number): void {
    if (length === 0) return;
    const { granularity, bits } = flat;
    const last = Math.floor((offset + length - 1) / granularity);
    for (let i = Math.floor(offset / granularity); i <= last; i++) bits[i] = true;
  }

  #record(offset: number, length: number): void {
    for (const flat of this.#flats.values()) if (flat.enabled) this.#mark(flat, offset, length);
  }

  #pick(): [string, Flat] | undefined {
    const all = [...this.#flats];
    return all[below(this.#random, Math.max(1, all.length))];
  }

  async #step(): Promise<void> {
    const random = this.#random;
    const node = this.#alive;
    const offset = below(random, this.#size);
    const most = random() < 0.1 ? this.#size : 20 * KiB;
    const length = Math.min(below(random, most), this.#size - offset);
    switch (below(random, 12)) {
      case 0:
      case 1:
      case 2:
        // Several at once, as guests do.
        await Promise.all(
          [0, 1].map((i) => {
            const at = Math.min(offset + i * 7000, this.#size);
            const bytes = Math.min(length, 9 * KiB, this.#size - at);
            this.#record(at, bytes);
            return node.write(at, pattern(bytes, i));
          }),
        );
        return;
      case 3:
        this.#record(offset, length);
        await node.writeZeroes(offset, length);
        return;
      case 4: {
        const start = offset - (offset % this.#unit);
        const bytes = Math.min(this.#unit * (1 + below(random, 3)), this.#size - start);
        this.#record(start, bytes);
        await node.discard(start, bytes);
        return;
      }
      case 5:
        if (this.#flats.size < 5) await this.#add(`b${this.#next++}`);
        return;
      case 6:
        await this.#change();
        return;
      case 7:
        await this.#merge();
        return;
      case 8:
        if (random() < 0.4) await this.#grow();
        return;
      case 9:
        await node.flush();
        return;
      default:
        await this.#reopen();
    }
  }

  async #add(name: string): Promise<void> {
    const granularity = 512 * 2 ** below(this.#random, 8);
    const enabled = this.#random() < 0.7;
    await this.#alive.changeBitmaps((bitmaps) => bitmaps.add({ name, granularity, enabled }));
    const bits = Array.from({ length: Math.ceil(this.#size / granularity) }, () => false);
    this.#flats.set(name, { granularity, enabled, bits });
  }

  async #change(): Promise<void> {
    const picked = this.#pick();
    if (picked === undefined) return;
    const [name, flat] = picked;
    const node = this.#alive;
    const kind = below(this.#random, 4);
    if (kind === 0) {
      await node.changeBitmaps((bitmaps) => bitmaps.remove(name));
      this.#flats.delete(name);
      // Of the same name again, now and then before the image is closed.
      if (this.#random() < 0.5) await this.#add(name);
    } else if (kind === 1) {
      await node.changeBitmaps((bitmaps) => bitmaps.clear(name));
      flat.bits.fill(false);
    } else {
      flat.enabled = kind === 2;
      await node.changeBitmaps((bitmaps) => bitmaps.setEnabled(name, kind === 2));
    }
  }

  async #merge(): Promise<void> {
    const into = this.#pick();
    const from = this.#pick();
    if (into === undefined || from === undefined) return;
    await this.#alive.changeBitmaps((bitmaps) => bitmaps.merge(into[0], bitmaps.dirty(from[0])));
    for (const [start, length] of runsOf(from[1], this.#size)) this.#mark(into[1], start, length);
  }

  async #grow(): Promise<void> {
    this.#size += 512 * (1 + below(this.#random, 200));
    await this.#alive.truncate(this.#size);
    for (const { bits, granularity } of this.#flats.values()) {
      while (bits.length < Math.ceil(this.#size / granularity)) bits.push(false);
    }
  }

  async #verify(node: MappedNode): Promise<void> {
    const facet = node.format.bitmaps as BitmapFacet;
    const listed = [...(await facet.list())].sort((a, b) => (a.name < b.name ? -1 : 1));
    const expected = [...this.#flats].sort(([a], [b]) => (a < b ? -1 : 1));
    expect(listed).toEqual(
      expected.map(([name, { granularity, enabled }]) => ({ name, granularity, enabled, inconsistent: false })),
    );
    for (const [name, flat] of expected) {
      const runs: [number, number][] = [];
      for await (const { offset, length } of facet.dirty(name)) runs.push([offset, length]);
      expect(runs, name).toEqual(runsOf(flat, this.#size));
    }
  }
}

function runsOf({ bits, granularity }: Flat, size: number): [number, number][] {
  const runs: [number, number][] = [];
  bits.forEach((bit, i) => {
    if (!bit) return;
    const start = i * granularity;
    const end = Math.min(start + granularity, size);
    const last = runs.at(-1);
    if (last !== undefined && last[0] + last[1] === start) last[1] = end - last[0];
    else runs.push([start, end - start]);
  });
  return runs;
}

describe('bitmaps say what flat models of them say', () => {
  it.each<[string, Qcow2Variant, number]>([
    // More than one cluster of bits: 512 bytes of them speak of 2 MiB.
    ['with clusters of 512 bytes (M-11, M-12)', {}, 5000 * KiB],
    ['with clusters of 4 KiB', { clusterSize: 4096 }, 900 * KiB],
    ['with lazy refcounts', { lazyRefcounts: true }, 3000 * KiB],
    ['with subclusters', { extendedL2: true }, 900 * KiB],
    ['with refcounts of one bit', { refcountBits: 1 }, 900 * KiB],
  ])(
    '%s',
    async (_, variant, size) => {
      await everySeed(3, (seed) => new BitmapModel(variant, size, seed).run(60));
    },
    SEED_TIMEOUT,
  );
});
