/** One image that QEMU and we change by turns: written, grown, snapshots made, applied and deleted. One model of bytes knows what the disk and
 *  every snapshot hold; after each turn both checks are clean and both read the same. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import {
  applySnapshot,
  checkImage,
  createSnapshot,
  deleteSnapshot,
  imageInfo,
  listSnapshots,
  openImage,
} from '../../src/node.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { describeWithQemu } from '../formats/qcow2/support.ts';
import { KiB, MiB } from './qcow2-cases.ts';
import { countersOf, faultsOf, firstDifference, NONE, Workbench } from './qcow2-workbench.ts';

const SEED = Number(process.env['COWDISK_SEED'] ?? 1);
const LONG = process.env['COWDISK_LONG'] === '1';
const MINUTES = 60_000;
/** Snapshots at once, at most: four bits count no more. */
const MOST = 5;

interface Frozen {
  readonly id: string;
  readonly name: string;
  readonly bytes: Buffer;
}

type Who = 'qemu' | 'cowdisk';

class Turns {
  readonly #here: Workbench;
  readonly #random: () => number;
  readonly #unit: number;
  readonly #compresses: boolean;
  readonly #grows: boolean;
  bytes: Buffer;
  frozen: Frozen[] = [];
  #named = 0;
  readonly done: string[] = [];

  constructor(here: Workbench, options: string, size: number, backing: Buffer | undefined, seed: number) {
    this.#here = here;
    this.#random = seededRandom(seed);
    this.#unit = Number(/cluster_size=(\d+)/.exec(options)?.[1] ?? 64 * KiB);
    // compressed clusters share theirs, and each counts
    this.#compresses = !options.includes('refcount_bits=4');
    this.#grows = !options.includes('compat=v2');
    this.bytes = Buffer.alloc(size);
    backing?.copy(this.bytes);
  }

  get #path(): string {
    return this.#here.path('image');
  }

  async turn(who: Who): Promise<void> {
    for (let i = 0; i < 3; i++) {
      const kind = below(this.#random, 10);
      if (kind < 4) await this.#write(who);
      else if (kind < 6) await this.#create(who);
      else if (kind < 8) await this.#apply(who);
      else if (kind < 9 || !this.#grows) await this.#delete(who);
      else await this.#grow(who);
    }
  }

  #range(): { readonly offset: number; readonly length: number } {
    const sectors = this.bytes.length / 512;
    const first = below(this.#random, sectors);
    const count = 1 + below(this.#random, Math.min(sectors - first, 1 + (8 * this.#unit) / 512));
    return { offset: first * 512, length: count * 512 };
  }

  async #write(who: Who): Promise<void> {
    const commands: string[] = [];
    const image = who === 'qemu' ? undefined : await openImage(this.#path, { readOnly: false, references: 'allow' });
    for (let i = 0; i < 6; i++) {
      const { offset, length } = this.#range();
      const pattern = below(this.#random, 256);
      const kind = below(this.#random, 4);
      if (kind === 0) {
        commands.push(`write -z ${offset} ${length}`);
        await image?.writeZeroes(offset, length);
        this.bytes.fill(0, offset, offset + length);
      } else if (kind === 1 && this.#compresses && who === 'cowdisk') {
        // QEMU 7.2 damages its own images when it compresses over what is allocated
        const start = offset - (offset % this.#unit);
        const end = Math.min(start + this.#unit, this.bytes.length);
        await image?.write(start, new Uint8Array(end - start).fill(pattern), { compressed: true });
        this.bytes.fill(pattern, start, end);
      } else {
        commands.push(`write -P ${pattern} ${offset} ${length}`);
        await image?.write(offset, new Uint8Array(length).fill(pattern));
        this.bytes.fill(pattern, offset, offset + length);
      }
    }
    await image?.close();
    if (who === 'qemu') await this.#here.io('image', commands, '-f', 'qcow2');
    this.done.push(`${who}: write`);
  }

  async #create(who: Who): Promise<void> {
    if (this.frozen.length >= MOST) return;
    // names that are ids of others, too
    const name = this.#random() < 0.3 ? String(below(this.#random, 4)) : `snapshot ${this.#named++}`;
    if (who === 'qemu') await this.#here.img('snapshot', '-c', name, 'image');
    else await createSnapshot(this.#path, { name, date: new Date() }, { references: 'allow' });
    const made = (await listSnapshots(this.#path, { references: 'allow' })).at(-1);
    expect(made?.name).toBe(name);
    this.frozen.push({ id: made?.id as string, name, bytes: Buffer.from(this.bytes) });
    this.done.push(`${who}: create ${made?.id} '${name}'`);
  }

  #any(): Frozen | undefined {
    return this.frozen[below(this.#random, Math.max(1, this.frozen.length))];
  }

  async #apply(who: Who): Promise<void> {
    const text = this.#random() < 0.5 ? this.#any()?.id : this.#any()?.name;
    if (text === undefined) return;
    const meant = this.frozen.find(({ id }) => id === text) ?? this.frozen.find(({ name }) => name === text);
    if (who === 'qemu') await this.#here.img('snapshot', '-a', text, 'image');
    else await applySnapshot(this.#path, text, { references: 'allow' });
    this.bytes = Buffer.from((meant as Frozen).bytes);
    this.done.push(`${who}: apply ${text}`);
  }

  async #delete(who: Who): Promise<void> {
    const name = this.#any()?.name;
    if (name === undefined) return;
    const meant = this.frozen.find((other) => other.name === name) as Frozen;
    if (who === 'qemu') await this.#here.img('snapshot', '-d', name, 'image');
    else await deleteSnapshot(this.#path, { name }, { references: 'allow' });
    this.frozen = this.frozen.filter((other) => other !== meant);
    this.done.push(`${who}: delete ${name}`);
  }

  async #grow(who: Who): Promise<void> {
    const size = this.bytes.length + 512 * (1 + below(this.#random, 300));
    if (size > 4 * MiB) return;
    if (who === 'qemu') await this.#here.img('resize', '-q', '-f', 'qcow2', 'image', String(size));
    else {
      const image = await openImage(this.#path, { readOnly: false, references: 'allow' });
      await image.node.truncate(size);
      await image.close();
    }
    this.bytes = Buffer.concat([this.bytes, Buffer.alloc(size - this.bytes.length)]);
    this.done.push(`${who}: grow to ${size}`);
  }

  async verify(): Promise<void> {
    const counters = await this.#here.check('image');
    expect(faultsOf(counters)).toEqual(NONE);
    const { result } = await checkImage(this.#path, { format: 'qcow2' });
    expect(countersOf(result)).toEqual(counters);
    await this.#here.img('convert', '-f', 'qcow2', '-O', 'raw', 'image', 'disk.raw');
    this.#same(readFileSync(this.#here.path('disk.raw')), this.bytes, 'the disk, read by qemu-img');
    const image = await openImage(this.#path, { references: 'allow' });
    this.#same(await image.read(0, image.virtualSize), this.bytes, 'the disk, read by us');
    await image.close();
  }

  async verifyFrozen(): Promise<void> {
    for (const { id, name, bytes } of this.frozen) {
      const frozen = await openImage(this.#path, { snapshot: { id, name }, references: 'allow' });
      this.#same(await frozen.read(0, frozen.virtualSize), bytes, `snapshot ${id}, read by us`);
      await frozen.close();
      // qemu-img takes the size of the disk for that of the snapshot
      if (bytes.length !== this.bytes.length) continue;
      const param = `snapshot.id=${id},snapshot.name=${name}`;
      await this.#here.img('convert', '-l', param, '-f', 'qcow2', '-O', 'raw', 'image', 'snapshot.raw');
      this.#same(readFileSync(this.#here.path('snapshot.raw')), bytes, `snapshot ${id}, read by qemu-img`);
    }
    const { snapshots } = await imageInfo(this.#path, { references: 'allow' });
    expect(snapshots?.map(({ id }) => id) ?? []).toEqual(this.frozen.map(({ id }) => id));
  }

  #same(found: Uint8Array, wanted: Uint8Array, what: string): void {
    expect(firstDifference(found, wanted), `${what} after ${this.done.join('; ')}`).toBeUndefined();
  }
}

const KINDS: readonly (readonly [options: string, backing: boolean, rounds: number])[] = [
  ['cluster_size=4096', false, 20],
  ['cluster_size=512,refcount_bits=8', true, 20],
  ['cluster_size=65536,lazy_refcounts=on', false, 20],
  ['cluster_size=16384,extended_l2=on', true, 20],
  ['cluster_size=1024,compat=v2', false, 12],
  ['cluster_size=2048,compat=v2', true, 12],
  ['cluster_size=512,refcount_bits=4', false, 12],
  ['cluster_size=4096,refcount_bits=64,compression_type=zstd', false, 12],
];

describeWithQemu('an image that QEMU and we change by turns', () => {
  it.each(KINDS)(
    'keeps disk and snapshots: %s, backing file %s, %i rounds',
    async (options, hasBacking, rounds) => {
      const here = new Workbench(mkdtempSync(join(tmpdir(), 'cowdisk-turns-')));
      afterAll(() => rmSync(here.directory, { recursive: true, force: true }));
      const size = 700 * KiB;
      let backing: Buffer | undefined;
      if (hasBacking) {
        await here.img('create', '-q', '-f', 'qcow2', 'base', '500k');
        await here.io('base', ['write -P 77 0 300k', 'write -P 78 400k 100k']);
        backing = Buffer.alloc(500 * KiB);
        backing.fill(77, 0, 300 * KiB).fill(78, 400 * KiB);
      }
      const below = hasBacking ? ['-b', 'base', '-F', 'qcow2'] : [];
      await here.img('create', '-q', '-f', 'qcow2', '-o', options, ...below, 'image', String(size));
      const turns = new Turns(here, options, size, backing, SEED * 1000 + options.length);
      for (let round = 0; round < (LONG ? 5 * rounds : rounds); round++) {
        await turns.turn(round % 2 === 0 ? 'qemu' : 'cowdisk');
        await turns.verify();
        if (round % 4 === 3) await turns.verifyFrozen();
      }
      await turns.verifyFrozen();
      expect(turns.done.length).toBeGreaterThan(rounds);
    },
    10 * MINUTES,
  );
});
