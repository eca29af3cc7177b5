/** One image that QEMU and we change by turns: written, grown, cut, amended; snapshots made, applied and deleted; dirty bitmaps made, merged and
 *  recorded. One model knows what the disk, every snapshot and every bitmap hold; after each turn both checks are clean and both read the same. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import {
  amendImage,
  applySnapshot,
  changeBitmap,
  checkImage,
  createSnapshot,
  deleteSnapshot,
  dirtyExtents,
  imageInfo,
  listBitmaps,
  listSnapshots,
  openImage,
} from '../../src/node.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import type { BitmapAction } from '../../src/tools/bitmap.ts';
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

/** A dirty bitmap: what it marks, bit by bit. */
interface Marks {
  readonly name: string;
  readonly granularity: number;
  enabled: boolean;
  bits: Set<number>;
}

type Who = 'qemu' | 'cowdisk';

class Turns {
  readonly #here: Workbench;
  readonly #random: () => number;
  readonly #unit: number;
  readonly #options: string;
  readonly #hasBacking: boolean;
  #version: 2 | 3;
  #refcountBits: number;
  bytes: Buffer;
  frozen: Frozen[] = [];
  marks: Marks[] = [];
  #named = 0;
  readonly done: string[] = [];

  constructor(here: Workbench, options: string, size: number, backing: Buffer | undefined, seed: number) {
    this.#here = here;
    this.#random = seededRandom(seed);
    this.#options = options;
    this.#hasBacking = backing !== undefined;
    this.#unit = Number(/cluster_size=(\d+)/.exec(options)?.[1] ?? 64 * KiB);
    this.#version = options.includes('compat=v2') ? 2 : 3;
    this.#refcountBits = Number(/refcount_bits=(\d+)/.exec(options)?.[1] ?? 16);
    this.bytes = Buffer.alloc(size);
    backing?.copy(this.bytes);
  }

  get #path(): string {
    return this.#here.path('image');
  }

  /** Compressed clusters share theirs, and each counts. */
  get #compresses(): boolean {
    return this.#refcountBits >= 8;
  }

  async turn(who: Who): Promise<void> {
    for (let i = 0; i < 3; i++) {
      const kind = below(this.#random, 16);
      if (kind < 5) await this.#write(who);
      else if (kind < 7) await this.#create(who);
      else if (kind < 9) await this.#apply(who);
      else if (kind < 10) await this.#delete(who);
      else if (kind < 12) await this.#resize(who);
      else if (kind < 14) await this.#amend(who);
      else await this.#bitmap(who);
    }
  }

  #mark(offset: number, length: number): void {
    for (const { enabled, granularity, bits } of this.marks) {
      if (!enabled) continue;
      for (let at = Math.floor(offset / granularity); at * granularity < offset + length; at++) bits.add(at);
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
        this.#mark(offset, length);
        this.bytes.fill(0, offset, offset + length);
      } else if (kind === 1 && this.#compresses && who === 'cowdisk') {
        // QEMU 7.2 damages its own images when it compresses over what is allocated
        const start = offset - (offset % this.#unit);
        const end = Math.min(start + this.#unit, this.bytes.length);
        await image?.write(start, new Uint8Array(end - start).fill(pattern), { compressed: true });
        this.#mark(start, end - start);
        this.#compressed = true;
        this.bytes.fill(pattern, start, end);
      } else {
        commands.push(`write -P ${pattern} ${offset} ${length}`);
        await image?.write(offset, new Uint8Array(length).fill(pattern));
        this.#mark(offset, length);
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
    // what happened to the disk then is in no bitmap: both refuse
    if (this.marks.length > 0) return;
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

  async #resize(who: Who): Promise<void> {
    // version 2 has no place for the size of a snapshot's disk
    if (this.#version === 2 && this.frozen.length > 0) return;
    const grows = this.#random() < 0.6;
    const by = 512 * (1 + below(this.#random, 300));
    const cut = this.bytes.length - by;
    // what QEMU cuts off within a cluster it shows again when it makes the disk larger
    const shrunk = who === 'qemu' ? cut - (cut % this.#unit) : cut;
    const size = grows ? this.bytes.length + by : shrunk;
    if (size > 4 * MiB || size < 100 * KiB) return;
    // QEMU marks what it writes into the new part over a backing file
    if (this.marks.length > 0 && this.#hasBacking && grows) return;
    if (who === 'qemu') {
      await this.#here.img('resize', '-q', ...(grows ? [] : ['--shrink']), '-f', 'qcow2', 'image', String(size));
    } else {
      const image = await openImage(this.#path, { readOnly: false, references: 'allow' });
      await image.node.truncate(size);
      await image.close();
    }
    this.bytes = Buffer.concat([this.bytes.subarray(0, size), Buffer.alloc(Math.max(0, size - this.bytes.length))]);
    for (const mark of this.marks) mark.bits = new Set([...mark.bits].filter((bit) => bit * mark.granularity < size));
    this.done.push(`${who}: resize to ${size}`);
  }

  async #amend(who: Who): Promise<void> {
    const [list, changes] = this.#amendment();
    if (list === undefined) return;
    if (who === 'qemu') await this.#here.img('amend', '-f', 'qcow2', '-o', list, 'image');
    else await amendImage(this.#path, changes, { references: 'allow' });
    this.done.push(`${who}: amend ${list}`);
  }

  /** Something that this image can become. */
  #amendment(): readonly [list: string | undefined, changes: Readonly<Record<string, unknown>>] {
    const nothing = [undefined, {}] as const;
    const kind = below(this.#random, 3);
    if (kind === 0 && this.#version === 3) {
      const lazy = this.#random() < 0.5;
      return [`lazy_refcounts=${lazy ? 'on' : 'off'}`, { lazyRefcounts: lazy }];
    }
    if (kind === 1 && this.#version === 3) {
      // compressed clusters may share one many times
      const least = this.#compressed ? 16 : 4;
      const fit = [4, 8, 16, 32, 64].filter((bits) => bits >= least);
      const bits = fit[below(this.#random, fit.length)] as number;
      this.#refcountBits = bits;
      return [`refcount_bits=${bits}`, { refcountBits: bits }];
    }
    if (kind === 2 && this.#mayBeVersion2) {
      this.#version = this.#version === 2 ? 3 : 2;
      return [`compat=${this.#version === 2 ? '0.10' : '1.1'}`, { compat: this.#version === 2 ? 'v2' : 'v3' }];
    }
    return nothing;
  }

  /** Something was ever written compressed: by us. */
  #compressed = false;

  get #mayBeVersion2(): boolean {
    const { length } = this.bytes;
    return (
      !/extended_l2|zstd/.test(this.#options) &&
      this.#refcountBits === 16 &&
      this.marks.length === 0 &&
      this.frozen.every(({ bytes }) => bytes.length === length)
    );
  }

  async #bitmap(who: Who): Promise<void> {
    if (this.#version === 2) return;
    const known = this.marks[below(this.#random, Math.max(1, this.marks.length))];
    const kind = known === undefined ? 0 : below(this.#random, 6);
    const name = known === undefined || kind === 0 ? `bitmap ${this.#named++}` : known.name;
    const action = this.#bitmapAction(kind, known);
    if (action === undefined) return;
    if (who === 'qemu') await this.#here.img('bitmap', ...qemuAction(action), '-f', 'qcow2', 'image', name);
    else await changeBitmap(this.#path, name, [action], { references: 'allow' });
    this.#applyToModel(action, name);
    this.done.push(`${who}: bitmap ${action.action} ${name}`);
  }

  #bitmapAction(kind: number, known: Marks | undefined): BitmapAction | undefined {
    switch (kind) {
      case 0:
        if (this.marks.length >= 4) return undefined;
        return { action: 'add', granularity: 512 * 2 ** below(this.#random, 8), enabled: this.#random() < 0.8 };
      case 1:
        return { action: 'remove' };
      case 2:
        return { action: 'clear' };
      case 3:
        // switched to what it is already, QEMU complains
        return { action: known?.enabled === true ? 'disable' : 'enable' };
      default: {
        const from = this.marks[below(this.#random, this.marks.length)] as Marks;
        // QEMU does not merge a bitmap into itself
        return from === known ? undefined : { action: 'merge', from: from.name };
      }
    }
  }

  #applyToModel(action: BitmapAction, name: string): void {
    const mark = this.marks.find((other) => other.name === name);
    if (action.action === 'add') {
      const { granularity = 64 * KiB, enabled = true } = action;
      this.marks.push({ name, granularity, enabled, bits: new Set() });
    } else if (mark === undefined) throw new Error(`no bitmap ${name}`);
    else if (action.action === 'remove') this.marks = this.marks.filter((other) => other !== mark);
    else if (action.action === 'clear') mark.bits.clear();
    else if (action.action === 'merge') {
      const from = this.marks.find((other) => other.name === action.from) as Marks;
      for (const bit of from.bits) {
        const end = Math.min((bit + 1) * from.granularity, this.bytes.length);
        for (let at = Math.floor((bit * from.granularity) / mark.granularity); at * mark.granularity < end; at++) {
          mark.bits.add(at);
        }
      }
    } else mark.enabled = action.action === 'enable';
  }

  /** Every bitmap marks what the model says, read by us from what either wrote. */
  async verifyMarks(): Promise<void> {
    const listed = await listBitmaps(this.#path, { references: 'allow' });
    expect(listed).toEqual(
      this.marks.map(({ name, granularity, enabled }) => ({ name, granularity, enabled, inconsistent: false })),
    );
    for (const { name, granularity, bits } of this.marks) {
      const found = new Set<number>();
      for await (const { offset, length } of dirtyExtents(this.#path, name, { references: 'allow' })) {
        for (let at = offset; at < offset + length; at += granularity) found.add(at / granularity);
      }
      const lacks = [...bits].filter((bit) => !found.has(bit));
      const surplus = [...found].filter((bit) => !bits.has(bit));
      const where = `${name}, ${granularity} bytes a bit, after ${this.done.join('; ')}`;
      expect({ lacks, surplus }, where).toEqual({ lacks: [], surplus: [] });
    }
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

/** For `qemu-img bitmap`. */
function qemuAction(action: BitmapAction): string[] {
  switch (action.action) {
    case 'add':
      return ['--add', '-g', String(action.granularity), ...(action.enabled === false ? ['--disable'] : [])];
    case 'merge':
      return ['--merge', action.from];
    default:
      return [`--${action.action}`];
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
      for (let round = 0; round < (LONG ? 50 : rounds); round++) {
        await turns.turn(round % 2 === 0 ? 'qemu' : 'cowdisk');
        await turns.verify();
        await turns.verifyMarks();
        if (round % 4 === 3) await turns.verifyFrozen();
      }
      await turns.verifyFrozen();
      expect(turns.done.length).toBeGreaterThan(rounds);
    },
    10 * MINUTES,
  );
});
