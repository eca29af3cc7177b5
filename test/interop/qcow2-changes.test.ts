/** One image that QEMU and we amend, resize, commit and write by turns. One model of bytes knows what the disk holds; after each turn both checks
 *  are clean and both read the same. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { amendImage, checkImage, commitImage, openImage, resizeImage } from '../../src/node.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { describeWithQemu } from '../formats/qcow2/support.ts';
import { KiB, MiB } from './qcow2-cases.ts';
import { countersOf, faultsOf, firstDifference, NONE, Workbench } from './qcow2-workbench.ts';

const SEED = Number(process.env['COWDISK_SEED'] ?? 1);
const LONG = process.env['COWDISK_LONG'] === '1';
const MINUTES = 60_000;
const MODES = ['off', 'metadata', 'falloc', 'full'] as const;

type Who = 'qemu' | 'cowdisk';

class Turns {
  readonly #here: Workbench;
  readonly #random: () => number;
  readonly #unit: number;
  readonly #extended: boolean;
  #version = 3;
  #backing: Buffer | undefined;
  bytes: Buffer;
  readonly done: string[] = [];

  constructor(here: Workbench, options: string, size: number, backing: Buffer | undefined, seed: number) {
    this.#here = here;
    this.#random = seededRandom(seed);
    this.#unit = Number(/cluster_size=(\d+)/.exec(options)?.[1] ?? 64 * KiB);
    this.#extended = options.includes('extended_l2');
    this.#backing = backing;
    this.bytes = Buffer.alloc(size);
    backing?.copy(this.bytes);
  }

  get #path(): string {
    return this.#here.path('image');
  }

  #pick<T>(of: readonly T[]): T {
    return of[below(this.#random, of.length)] as T;
  }

  async turn(who: Who): Promise<void> {
    await this.#write(who);
    const kind = below(this.#random, 10);
    if (kind < 5) await this.#amend(who);
    else if (kind < 7) await this.#grow(who);
    else if (kind < 9) await this.#shrink(who);
    else await this.#commit(who);
  }

  async #write(who: Who): Promise<void> {
    const commands: string[] = [];
    const image = who === 'qemu' ? undefined : await openImage(this.#path, { readOnly: false, references: 'allow' });
    for (let i = 0; i < 6; i++) {
      const sectors = this.bytes.length / 512;
      const offset = below(this.#random, sectors) * 512;
      const length = Math.min(this.bytes.length - offset, 512 * (1 + below(this.#random, (8 * this.#unit) / 512)));
      const pattern = below(this.#random, 3) === 0 ? 0 : 1 + below(this.#random, 255);
      if (pattern === 0) {
        const unmap = this.#random() < 0.5;
        commands.push(`write -z ${unmap ? '-u ' : ''}${offset} ${length}`);
        await image?.writeZeroes(offset, length, { unmap });
      } else {
        commands.push(`write -P ${pattern} ${offset} ${length}`);
        await image?.write(offset, new Uint8Array(length).fill(pattern));
      }
      this.bytes.fill(pattern, offset, offset + length);
    }
    await image?.close();
    if (who === 'qemu') await this.#here.io('image', commands, '-f', 'qcow2');
    this.done.push(`${who}: write`);
  }

  async #amend(who: Who): Promise<void> {
    const choices: string[] =
      this.#version === 2
        ? ['compat=1.1', 'compat=1.1,refcount_bits=4', 'compat=1.1,lazy_refcounts=on']
        : [
            'lazy_refcounts=on',
            'lazy_refcounts=off',
            ...[1, 2, 4, 8, 16, 32, 64].map((bits) => `refcount_bits=${bits}`),
          ];
    if (this.#version === 3 && !this.#extended)
      choices.push(...Array(4).fill('compat=0.10,refcount_bits=16,lazy_refcounts=off'));
    const chosen = this.#pick(choices);
    if (chosen.includes('compat')) this.#version = chosen.includes('1.1') ? 3 : 2;
    if (who === 'qemu') await this.#here.img('amend', '-f', 'qcow2', '-o', chosen, 'image');
    else {
      const bits = /refcount_bits=(\d+)/.exec(chosen)?.[1];
      const lazy = /lazy_refcounts=(on|off)/.exec(chosen)?.[1];
      const compat = /compat=([\d.]+)/.exec(chosen)?.[1];
      const changes = {
        ...(bits === undefined ? {} : { refcountBits: Number(bits) }),
        ...(lazy === undefined ? {} : { lazyRefcounts: lazy === 'on' }),
        ...(compat === undefined ? {} : { compat }),
      };
      await amendImage(this.#path, changes, { references: 'allow' });
    }
    this.done.push(`${who}: amend ${chosen}`);
  }

  /** Whole clusters: QEMU shows again what a smaller disk left in its last one. */
  async #grow(who: Who): Promise<void> {
    const size = this.bytes.length + this.#unit * (1 + below(this.#random, (300 * KiB) / this.#unit + 1));
    if (size > 3 * MiB) return;
    // QEMU does not make version 2 grow over a longer backing file, and preallocates over whatever the file has behind its last cluster.
    if (who === 'qemu' && this.#version === 2 && this.#backing !== undefined) return;
    const preallocation = who === 'qemu' ? 'off' : this.#pick(MODES);
    if (who === 'qemu') {
      await this.#here.img('resize', '-q', '-f', 'qcow2', `--preallocation=${preallocation}`, 'image', String(size));
    } else await resizeImage(this.#path, size, { preallocation, references: 'allow' });
    this.bytes = Buffer.concat([this.bytes, Buffer.alloc(size - this.bytes.length)]);
    this.done.push(`${who}: grow to ${size} with ${preallocation}`);
  }

  async #shrink(who: Who): Promise<void> {
    const size = this.#unit * (1 + below(this.#random, this.bytes.length / this.#unit));
    if (size < 200 * KiB) return;
    if (who === 'qemu') await this.#here.img('resize', '-q', '-f', 'qcow2', '--shrink', 'image', String(size));
    else await resizeImage(this.#path, size, { shrink: true, references: 'allow' });
    this.bytes = this.bytes.subarray(0, size);
    this.done.push(`${who}: shrink to ${size}`);
  }

  async #commit(who: Who): Promise<void> {
    if (this.#backing === undefined) return;
    if (who === 'qemu') await this.#here.img('commit', '-q', '-f', 'qcow2', 'image');
    else await commitImage(this.#path, { references: 'allow' });
    this.done.push(`${who}: commit`);
  }

  async verify(): Promise<void> {
    const said = `after ${this.done.join('; ')}`;
    const counters = await this.#here.check('image');
    expect(faultsOf(counters), said).toEqual(NONE);
    const { result } = await checkImage(this.#path, { format: 'qcow2' });
    expect(countersOf(result), said).toEqual(counters);
    await this.#here.img('convert', '-f', 'qcow2', '-O', 'raw', 'image', 'disk.raw');
    expect(firstDifference(readFileSync(this.#here.path('disk.raw')), this.bytes), `qemu-img ${said}`).toBeUndefined();
    const image = await openImage(this.#path, { references: 'allow' });
    expect(firstDifference(await image.read(0, image.virtualSize), this.bytes), `cowdisk ${said}`).toBeUndefined();
    await image.close();
  }
}

const KINDS: readonly (readonly [options: string, backing: boolean, rounds: number])[] = [
  ['cluster_size=4096', false, 16],
  ['cluster_size=512', true, 16],
  ['cluster_size=65536', true, 16],
  ['cluster_size=16384,extended_l2=on', true, 12],
];

describeWithQemu('an image that QEMU and we amend and resize by turns', () => {
  it.each(KINDS)(
    'keeps its disk: %s, backing file %s, %i rounds',
    async (options, hasBacking, rounds) => {
      const here = new Workbench(mkdtempSync(join(tmpdir(), 'cowdisk-changes-')));
      afterAll(() => rmSync(here.directory, { recursive: true, force: true }));
      const size = 768 * KiB;
      let backing: Buffer | undefined;
      if (hasBacking) {
        await here.img('create', '-q', '-f', 'qcow2', 'base', '1M');
        await here.io('base', ['write -P 77 0 300k', 'write -P 78 400k 600k']);
        backing = Buffer.alloc(MiB);
        backing.fill(77, 0, 300 * KiB).fill(78, 400 * KiB, 1000 * KiB);
      }
      const below = hasBacking ? ['-b', 'base', '-F', 'qcow2'] : [];
      await here.img('create', '-q', '-f', 'qcow2', '-o', options, ...below, 'image', String(size));
      const turns = new Turns(here, options, size, backing, SEED * 1000 + options.length);
      for (let round = 0; round < (LONG ? 5 * rounds : rounds); round++) {
        await turns.turn(round % 2 === 0 ? 'qemu' : 'cowdisk');
        await turns.verify();
      }
      expect(turns.done.length).toBeGreaterThan(rounds);
    },
    10 * MINUTES,
  );
});
