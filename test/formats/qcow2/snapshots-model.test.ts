import { describe, expect, it } from 'vitest';
import type { SnapshotFacet } from '../../../src/core/format.ts';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { CacheBudget } from '../../../src/core/table-cache.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { LateStore } from '../../../src/testing/late-store.ts';
import { below, seededRandom } from '../../../src/testing/random.ts';
import { pattern } from '../../support/qcow2-parts.ts';
import { checkQcow2, createQcow2Bytes, openQcow2, type Qcow2Variant } from '../../support/qcow2-under-test.ts';
import { everySeed, SEED_TIMEOUT } from '../../support/seeds.ts';

interface Frozen {
  readonly id: string;
  readonly content: Uint8Array;
}

interface ModelCase {
  readonly size: number;
  readonly backingSize?: number;
  /** The disk may grow; not in version 2, where snapshots forbid it. */
  readonly grows?: boolean;
  readonly compressed?: boolean;
  /** Snapshots at once, at most. */
  readonly most?: number;
}

/** A disk and its snapshots as bytes, and the same in an image: what is done to one is done to the other. */
class SnapshotModel {
  readonly #variant: Qcow2Variant;
  readonly #case: ModelCase;
  readonly #random: () => number;
  readonly #seed: number;
  #file: MemoryStore = new MemoryStore();
  #node: MappedNode | undefined;
  #backing: Uint8Array | undefined;
  #disk = new Uint8Array(0);
  #frozen: Frozen[] = [];
  #next = 0;

  constructor(variant: Qcow2Variant, it: ModelCase, seed: number) {
    this.#variant = variant;
    this.#case = it;
    this.#seed = seed;
    this.#random = seededRandom(seed);
  }

  get #unit(): number {
    return this.#variant.extendedL2 === true ? 16384 : (this.#variant.clusterSize ?? 512);
  }

  get #open(): MappedNode {
    if (this.#node === undefined) throw new Error('not open');
    return this.#node;
  }

  async run(operations: number): Promise<void> {
    const { size, backingSize } = this.#case;
    this.#backing = backingSize === undefined ? undefined : pattern(backingSize, this.#seed);
    this.#file = await createQcow2Bytes(size, this.#variant, backingSize !== undefined);
    this.#disk = new Uint8Array(size);
    this.#disk.set(this.#backing?.subarray(0, size) ?? []);
    await this.#reopen();
    for (let i = 0; i < operations; i++) {
      const what = await this.#step();
      try {
        await this.#verifyDisk();
      } catch (error) {
        throw new Error(`seed ${this.#seed}, after operation ${i} (${what}): ${(error as Error).message}`);
      }
    }
    await this.#close();
  }

  async #step(): Promise<string> {
    const kind = below(this.#random, 100);
    if (kind < 45) return await this.#write();
    if (kind < 55) return await this.#zero();
    if (kind < 63) return await this.#discard();
    if (kind < 75) return await this.#create();
    if (kind < 85) return await this.#apply();
    if (kind < 93) return await this.#delete();
    if (kind < 96 && this.#case.grows === true) return await this.#grow();
    await this.#close();
    await this.#reopen();
    return 'close and open';
  }

  #range(align: number): { offset: number; length: number } {
    const units = Math.floor(this.#disk.length / align);
    const first = below(this.#random, units);
    const count =
      1 + below(this.#random, Math.min(units - first, 1 + below(this.#random, 8 * Math.ceil(this.#unit / align))));
    return { offset: first * align, length: count * align };
  }

  async #write(): Promise<string> {
    const compressed = this.#case.compressed === true && below(this.#random, 3) === 0;
    const { offset, length } = this.#range(compressed ? this.#unit : 512);
    const bytes = pattern(length, this.#next++);
    await this.#open.write(offset, bytes, { compressed });
    this.#disk.set(bytes, offset);
    return `write ${offset}+${length}`;
  }

  async #zero(): Promise<string> {
    const { offset, length } = this.#range(512);
    await this.#open.writeZeroes(offset, length, { unmap: below(this.#random, 2) === 0 });
    this.#disk.fill(0, offset, offset + length);
    return `zero ${offset}+${length}`;
  }

  async #discard(): Promise<string> {
    const { offset, length } = this.#range(this.#unit);
    const keepsContent = this.#variant.compat === 'v2' && this.#backing !== undefined;
    await this.#open.discard(offset, length);
    if (!keepsContent) this.#disk.fill(0, offset, offset + length);
    return `discard ${offset}+${length}`;
  }

  async #create(): Promise<string> {
    if (this.#frozen.length >= (this.#case.most ?? 4)) return 'nothing';
    const { id } = await change(this.#open, (snapshots) =>
      snapshots.create({ name: `s${this.#next++}`, dateSeconds: this.#next }),
    );
    this.#frozen.push({ id, content: this.#disk.slice() });
    return `create ${id}`;
  }

  #any(): Frozen | undefined {
    return this.#frozen[below(this.#random, Math.max(1, this.#frozen.length))];
  }

  async #apply(): Promise<string> {
    const frozen = this.#any();
    if (frozen === undefined) return 'nothing';
    await change(this.#open, (snapshots) => snapshots.apply(frozen.id));
    this.#disk = frozen.content.slice();
    return `apply ${frozen.id}`;
  }

  async #delete(): Promise<string> {
    const frozen = this.#any();
    if (frozen === undefined) return 'nothing';
    await change(this.#open, (snapshots) => snapshots.delete({ id: frozen.id }));
    this.#frozen = this.#frozen.filter((other) => other !== frozen);
    return `delete ${frozen.id}`;
  }

  async #grow(): Promise<string> {
    const size = this.#disk.length + 512 * (1 + below(this.#random, 3 * Math.ceil(this.#unit / 512)));
    await this.#open.truncate(size);
    const grown = new Uint8Array(size);
    grown.set(this.#disk);
    this.#disk = grown;
    return `grow to ${size}`;
  }

  async #verifyDisk(): Promise<void> {
    expectBytes('disk', await readAll(this.#open), this.#disk);
    expect(this.#open.format.snapshots?.list().map(({ id }) => id)).toEqual(this.#frozen.map(({ id }) => id));
  }

  async #close(): Promise<void> {
    await this.#open.close();
    const bytes = this.#file.bytes();
    const { lines, leaks } = await checkQcow2(MemoryStore.from(bytes));
    expect({ seed: this.#seed, lines, leaks }).toEqual({ seed: this.#seed, lines: [], leaks: 0 });
    for (const { id, content } of this.#frozen) {
      const node = await this.#openFile({ readOnly: true, snapshot: { id } });
      expectBytes(`seed ${this.#seed}: snapshot ${id}`, await readAll(node), content);
      await node.close();
    }
  }

  async #reopen(): Promise<void> {
    this.#node = await this.#openFile({ readOnly: false });
  }

  #openFile(options: { readonly readOnly: boolean; readonly snapshot?: { readonly id: string } }): Promise<MappedNode> {
    this.#file = MemoryStore.from(this.#file.bytes(), { pageSize: 512 });
    const late = below(this.#random, 2) === 0;
    const file = late ? new LateStore({ seed: below(this.#random, 2 ** 31) }, this.#file) : this.#file;
    return openQcow2(file, {
      ...options,
      cache: new CacheBudget(below(this.#random, 2) * (1 << 20)),
      ...(this.#backing === undefined ? {} : { backing: MemoryStore.from(this.#backing) }),
    });
  }
}

/** Alone, as the engine does it. */
function change<T>(node: MappedNode, make: (snapshots: SnapshotFacet) => Promise<T>): Promise<T> {
  const { snapshots } = node.format;
  if (snapshots === undefined) throw new Error('no snapshots');
  return node.exclusive(() => make(snapshots));
}

function expectBytes(what: string, found: Uint8Array, wanted: Uint8Array): void {
  if (found.length !== wanted.length) throw new Error(`${what} has ${found.length} bytes, not ${wanted.length}`);
  const at = found.findIndex((byte, index) => byte !== wanted[index]);
  if (at >= 0) throw new Error(`${what} differs at ${at}: ${found[at]}, not ${wanted[at]}`);
}

async function readAll(node: MappedNode): Promise<Uint8Array> {
  const bytes = new Uint8Array(node.size);
  await node.read(0, bytes);
  return bytes;
}

const CASES: Record<string, readonly [Qcow2Variant, ModelCase]> = {
  'small clusters': [{}, { size: 48 * 1024, grows: true, compressed: true }],
  'version 2': [{ compat: 'v2' }, { size: 48 * 1024 }],
  'version 2 over a backing file': [{ compat: 'v2' }, { size: 48 * 1024, backingSize: 30 * 1024 }],
  'a backing file that is shorter': [{}, { size: 48 * 1024, backingSize: 20 * 1024, grows: true, compressed: true }],
  'a backing file that is longer': [{ clusterSize: 1024 }, { size: 20 * 1024, backingSize: 96 * 1024, grows: true }],
  'refcounts of 4 bits': [{ refcountBits: 4 }, { size: 24 * 1024, most: 5 }],
  'refcounts of 8 bits': [
    { refcountBits: 8, clusterSize: 1024 },
    { size: 48 * 1024, grows: true, compressed: true },
  ],
  'refcounts of 32 bits': [{ refcountBits: 32 }, { size: 48 * 1024, compressed: true }],
  'refcounts of 64 bits': [{ refcountBits: 64 }, { size: 48 * 1024, grows: true, compressed: true }],
  'lazy refcounts': [{ lazyRefcounts: true }, { size: 48 * 1024, compressed: true }],
  'clusters of 64 KiB': [{ clusterSize: 65536 }, { size: 700 * 1024, compressed: true }],
  subclusters: [{ extendedL2: true }, { size: 300 * 1024, grows: true, compressed: true }],
  'subclusters over a backing file': [{ extendedL2: true }, { size: 300 * 1024, backingSize: 200 * 1024 }],
};

describe('a disk and its snapshots', () => {
  for (const [name, [variant, options]] of Object.entries(CASES)) {
    it(
      `keep to the model with ${name}`,
      () => everySeed(4, (seed) => new SnapshotModel(variant, options, seed).run(60)),
      SEED_TIMEOUT,
    );
  }
});
