/** Bitmaps of one image that QEMU and we write by turns: each goes on where the other has stopped. One flat model knows what every bitmap marks;
 *  after each turn both checks are clean, and both say what the model says. QEMU is asked through its NBD server. */
import { spawn as start } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { changeBitmap, checkImage, createSnapshot, dirtyExtents, listBitmaps, openImage } from '../../src/node.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { describeWithQemu } from '../formats/qcow2/support.ts';
import { KiB, MiB } from './qcow2-cases.ts';
import { countersOf, faultsOf, type MapEntry, NONE, Workbench } from './qcow2-workbench.ts';

const SEED = Number(process.env['COWDISK_SEED'] ?? 1);
const TURNS = process.env['COWDISK_LONG'] === '1' ? 50 : 8;
const MINUTES = 60_000;
const FORMAT = { format: 'qcow2', references: 'allow' } as const;

type Run = readonly [offset: number, length: number];

/** What QEMU's server says of a bitmap. */
async function seenByQemu(here: Workbench, bitmap: string): Promise<Run[]> {
  const socket = here.path('nbd');
  rmSync(socket, { force: true });
  const server = start(
    'qemu-nbd',
    ['-r', '-f', 'qcow2', `--bitmap=${bitmap}`, '-k', socket, '-t', here.path('image')],
    {
      cwd: here.directory,
      stdio: 'ignore',
    },
  );
  const ended = new Promise<void>((resolve) => server.on('exit', () => resolve()));
  try {
    while (!existsSync(socket)) {
      if (server.exitCode !== null) throw new Error(`qemu-nbd ended with ${server.exitCode}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    const options = `driver=nbd,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:dirty-bitmap:${bitmap}`;
    const map = JSON.parse(await here.img('map', '--output=json', '--image-opts', options)) as MapEntry[];
    // What is dirty is called no data.
    return map.filter(({ data }) => !data).map((entry) => [entry.start, entry.length]);
  } finally {
    server.kill();
    await ended;
  }
}

interface Flat {
  readonly granularity: number;
  enabled: boolean;
  bits: boolean[];
}

class Turns {
  readonly #here: Workbench;
  readonly #random: () => number;
  readonly #flats = new Map<string, Flat>();
  #size: number;
  #next = 0;
  readonly #snapshots: boolean;
  readonly done: string[] = [];

  constructor(here: Workbench, size: number, snapshots: boolean, seed: number) {
    this.#here = here;
    this.#snapshots = snapshots;
    this.#size = size;
    this.#random = seededRandom(seed);
  }

  get #image(): string {
    return this.#here.path('image');
  }

  async qemu(): Promise<void> {
    const random = this.#random;
    const commands: string[] = [];
    for (let i = 0; i < 3; i++) {
      const [offset, length] = this.#range();
      const what = ['write', 'write -z', 'write -P 7'][below(random, 3)];
      commands.push(`${what} ${offset} ${length}`);
      this.#record(offset, length);
    }
    await this.#here.io('image', commands, '-f', 'qcow2');
    this.done.push(`qemu: ${commands.join('; ')}`);
    await this.#change('qemu', (name, action) =>
      this.#here.img('bitmap', ...action.flatMap(({ args }) => args), '-f', 'qcow2', 'image', name),
    );
    if (this.#snapshots && random() < 0.3) await this.#here.img('snapshot', '-c', `q${this.#next++}`, 'image');
    if (random() < 0.3) {
      this.#grow();
      await this.#here.img('resize', '-q', '-f', 'qcow2', 'image', String(this.#size));
    }
  }

  async ours(): Promise<void> {
    const random = this.#random;
    await using image = await openImage(this.#image, { ...FORMAT, readOnly: false });
    for (let i = 0; i < 3; i++) {
      const [offset, length] = this.#range();
      if (below(random, 2) === 0) await image.write(offset, new Uint8Array(length).fill(9));
      else await image.writeZeroes(offset, length);
      this.#record(offset, length);
      this.done.push(`cowdisk: ${offset}+${length}`);
    }
    await this.#change('cowdisk', (name, actions) =>
      changeBitmap(
        image,
        name,
        actions.map(({ action }) => action),
      ),
    );
    if (this.#snapshots && random() < 0.3) await createSnapshot(image, { name: 'ours', date: new Date(0) });
    if (random() < 0.3) {
      this.#grow();
      await image.node.truncate(this.#size);
    }
  }

  #range(): [number, number] {
    const offset = 512 * below(this.#random, this.#size / 512);
    const length = 512 * (1 + below(this.#random, this.#random() < 0.2 ? 4000 : 60));
    return [offset, Math.min(length, this.#size - offset)];
  }

  #grow(): void {
    this.#size += 512 * (1 + below(this.#random, 600));
    for (const { bits, granularity } of this.#flats.values()) {
      while (bits.length < Math.ceil(this.#size / granularity)) bits.push(false);
    }
    this.done.push(`grown to ${this.#size}`);
  }

  #record(offset: number, length: number): void {
    for (const flat of this.#flats.values()) if (flat.enabled) mark(flat, offset, length);
  }

  /** One change of one bitmap, by either. */
  async #change(
    who: string,
    make: (
      name: string,
      actions: { args: string[]; action: Parameters<typeof changeBitmap>[2][number] }[],
    ) => Promise<unknown>,
  ): Promise<void> {
    const random = this.#random;
    const names = [...this.#flats.keys()];
    const picked = names[below(random, Math.max(1, names.length))];
    const kind = picked === undefined || names.length < 2 ? 0 : below(random, 6);
    if (kind === 0 || picked === undefined) {
      const name = `${who}-${this.#next++}`;
      const granularity = 512 * 2 ** below(random, 8);
      await make(name, [{ args: ['--add', '-g', String(granularity)], action: { action: 'add', granularity } }]);
      const bits = Array.from({ length: Math.ceil(this.#size / granularity) }, () => false);
      this.#flats.set(name, { granularity, enabled: true, bits });
      this.done.push(`${who}: add ${name} ${granularity}`);
      return;
    }
    const flat = this.#flats.get(picked) as Flat;
    const action = (['remove', 'clear', 'enable', 'disable', 'merge'] as const)[kind - 1] as
      | 'remove'
      | 'clear'
      | 'enable'
      | 'disable'
      | 'merge';
    this.done.push(`${who}: ${action} ${picked}`);
    if (action === 'merge') {
      const from = names[below(random, names.length)] as string;
      await make(picked, [{ args: ['--merge', from], action: { action, from } }]);
      for (const [offset, length] of runsOf(this.#flats.get(from) as Flat, this.#size)) mark(flat, offset, length);
      return;
    }
    await make(picked, [{ args: [`--${action}`], action: { action } }]);
    if (action === 'remove') this.#flats.delete(picked);
    else if (action === 'clear') flat.bits.fill(false);
    else flat.enabled = action === 'enable';
  }

  async verify(): Promise<void> {
    const mine = countersOf((await checkImage(this.#image, FORMAT)).result);
    expect(faultsOf(await this.#here.check('image'))).toEqual(NONE);
    expect(faultsOf(mine)).toEqual(NONE);
    const expected = [...this.#flats].map(([name, { granularity, enabled }]) => ({
      name,
      granularity,
      enabled,
      inconsistent: false,
    }));
    expect([...(await listBitmaps(this.#image, FORMAT))]).toEqual(expected);
    const info = JSON.parse(await this.#here.img('info', '-f', 'qcow2', '--output=json', 'image'));
    expect(info['format-specific'].data.bitmaps ?? []).toEqual(
      expected.map(({ name, granularity, enabled }) => ({ flags: enabled ? ['auto'] : [], name, granularity })),
    );
    for (const [name, flat] of this.#flats) {
      const runs = runsOf(flat, this.#size);
      const seen: Run[] = [];
      for await (const { offset, length } of dirtyExtents(this.#image, name, FORMAT)) seen.push([offset, length]);
      expect(seen, name).toEqual(runs);
      expect(await seenByQemu(this.#here, name), `${name}, as QEMU sees it`).toEqual(runs);
    }
  }
}

function mark({ granularity, bits }: Flat, offset: number, length: number): void {
  const last = Math.floor((offset + length - 1) / granularity);
  for (let i = Math.floor(offset / granularity); i <= last; i++) bits[i] = true;
}

function runsOf({ bits, granularity }: Flat, size: number): Run[] {
  const runs: [number, number][] = [];
  bits.forEach((bit, i) => {
    if (!bit) return;
    const begin = i * granularity;
    const end = Math.min(begin + granularity, size);
    const last = runs.at(-1);
    if (last !== undefined && last[0] + last[1] === begin) last[1] = end - begin + last[1];
    else runs.push([begin, end - begin]);
  });
  return runs;
}

describeWithQemu('bitmaps that QEMU and we keep by turns', () => {
  const root = mkdtempSync(join(tmpdir(), 'cowdisk-bitmaps-'));
  afterAll(() => rmSync(root, { recursive: true, force: true }));

  it.each([
    ['clusters of 64 KiB (M-11, M-12)', 'cluster_size=64k', 3 * MiB],
    ['clusters of 512 bytes', 'cluster_size=512', 5 * MiB],
    ['a data file', 'data_file=data.raw', 2 * MiB],
  ])('say the same to both, with %s', { timeout: 5 * MINUTES }, async (_, options, size) => {
    const here = new Workbench(join(root, options.replaceAll('=', '-')));
    await here.img('create', '-q', '-f', 'qcow2', '-o', options, 'image', String(size));
    const turns = new Turns(here, size, !options.includes('data_file'), SEED);
    try {
      for (let turn = 0; turn < TURNS; turn++) {
        if (turn % 2 === 0) await turns.qemu();
        else await turns.ours();
        await turns.verify();
      }
    } catch (error) {
      throw new Error(`seed ${SEED}: ${turns.done.join('\n')}\n${(error as Error).message}`, { cause: error });
    }
  });

  it('are void to both after a writer has died (M-11)', async () => {
    const here = new Workbench(join(root, 'died'));
    await here.img('create', '-q', '-f', 'qcow2', 'image', '1M');
    await here.img('bitmap', '--add', 'image', 'b');
    await here.run('sh', '-c', "qemu-io -f qcow2 -c 'write 0 64k' -c abort image >/dev/null 2>&1 || true");
    expect(await listBitmaps(here.path('image'))).toMatchObject([{ name: 'b', inconsistent: true }]);
    await expect(changeBitmap(here.path('image'), 'b', [{ action: 'clear' }])).rejects.toMatchObject({
      reason: 'qcow2.bitmap-inconsistent',
    });
    await changeBitmap(here.path('image'), 'b', [{ action: 'remove' }, { action: 'add' }]);
    expect(faultsOf(await here.check('image'))).toEqual(NONE);
    expect(await seenByQemu(here, 'b')).toEqual([]);
    // Ours: what is open is marked, and stays so when nobody closes it.
    const image = await openImage(here.path('image'), { ...FORMAT, readOnly: false });
    const info = JSON.parse(await here.img('info', '-U', '--output=json', 'image'));
    expect(info['format-specific'].data.bitmaps).toMatchObject([{ name: 'b', flags: ['in-use', 'auto'] }]);
    await image.close();
    expect(await listBitmaps(here.path('image'))).toMatchObject([{ name: 'b', inconsistent: false }]);
  });

  it('keep bits that are all set without room, as QEMU reads them', async () => {
    const here = new Workbench(join(root, 'ones'));
    await here.img('create', '-q', '-f', 'qcow2', 'image', '1G');
    await changeBitmap(here.path('image'), 'b', [{ action: 'add', granularity: 512 }]);
    const before = here.size('image');
    {
      await using image = await openImage(here.path('image'), { ...FORMAT, readOnly: false });
      await image.writeZeroes(0, 1024 * MiB);
    }
    expect(here.size('image') - before).toBeLessThan(512 * KiB);
    expect(await seenByQemu(here, 'b')).toEqual([[0, 1024 * MiB]]);
    expect(faultsOf(await here.check('image'))).toEqual(NONE);
  });
});
