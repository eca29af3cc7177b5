/** `snapshot`, and `-l` of other verbs, as people use them; what qemu-img says is among the transcripts. */
import { beforeEach, describe, expect, it } from 'vitest';
import { Interruption, MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { createImage, imageInfo, listSnapshots, openImage } from '../../src/node.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const KiB = 1024;

interface Said {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

async function called(calledAs: string, args: readonly string[], signal?: AbortSignal): Promise<Said> {
  const out = new MemorySink();
  const err = new MemorySink();
  const status = await run({ calledAs, args, out, err, env: {}, signal: signal ?? new AbortController().signal });
  return { status, out: out.text, err: err.text };
}

const cowdisk = (...args: string[]): Promise<Said> => called('cowdisk', args);
const SILENT = { status: 0, out: '', err: '' };

const disk = path('disk.qcow2');

async function fill(value: number): Promise<void> {
  await using image = await openImage(disk, { readOnly: false });
  await image.write(0, new Uint8Array(200 * KiB).fill(value));
}

async function first(): Promise<number> {
  await using image = await openImage(disk);
  return (await image.read(0, 1))[0] as number;
}

async function names(): Promise<string[]> {
  return (await listSnapshots(disk)).map(({ id, name }) => `${id} ${name}`);
}

beforeEach(async () => {
  await createImage(disk, { format: 'qcow2', size: 300 * KiB });
  await fill(1);
  expect(await cowdisk('snapshot', '-c', 'one', disk)).toEqual(SILENT);
  await fill(2);
});

describe('snapshot', () => {
  it('lists, makes, applies and deletes', async () => {
    expect(await cowdisk('snapshot', '--create', '1', disk)).toEqual(SILENT);
    await fill(3);
    const { out } = await cowdisk('snapshot', disk);
    expect(out.split('\n').slice(0, 2)).toEqual([
      'Snapshot list:',
      'ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT',
    ]);
    expect(out).toMatch(/^1 +one +0 B \d{4}-\d\d-\d\d \d\d:\d\d:\d\d 00:00:00\.000 +0$/m);
    expect(await cowdisk('snapshot', '-l', disk)).toEqual({ status: 0, out, err: '' });
    expect(await cowdisk('snapshot', '-a', '1', disk)).toEqual(SILENT);
    expect(await first()).toBe(1);
    expect(await cowdisk('snapshot', '-a', '2', disk)).toEqual(SILENT);
    expect(await first()).toBe(2);
    // a name first, as in qemu-img
    expect(await cowdisk('snapshot', '-d', '1', disk)).toEqual(SILENT);
    expect(await names()).toEqual(['1 one']);
    expect(await cowdisk('snapshot', '-d', '1', disk)).toEqual(SILENT);
    expect(await cowdisk('snapshot', '-l', disk)).toEqual(SILENT);
  });

  it('records when it was made', async () => {
    const before = Math.floor(Date.now() / 1000);
    await cowdisk('snapshot', '-c', 'now', disk);
    const made = (await listSnapshots(disk)).at(-1);
    expect(made?.dateSeconds).toBeGreaterThanOrEqual(before);
    expect(made?.dateSeconds).toBeLessThanOrEqual(Math.ceil(Date.now() / 1000));
  });

  it('lists as JSON', async () => {
    const { out } = await cowdisk('snapshot', '--json', disk);
    expect(JSON.parse(out)).toMatchObject([{ id: '1', name: 'one', 'vm-state-size': 0, icount: 0 }]);
    expect(await cowdisk('snapshot', '--json', '-c', 'x', disk)).toEqual({
      status: 1,
      out: '',
      err: 'cowdisk: --json: only a list can be printed\n',
    });
  });

  it('deletes by id as cowdisk only: as qemu-img it knows names', async () => {
    expect(await called('qemu-img', ['snapshot', '-d', '1', disk])).toMatchObject({ status: 1 });
    expect(await names()).toEqual(['1 one']);
    expect(await called('qemu-img', ['snapshot', disk])).toEqual(SILENT);
  });

  it('says what is wrong in its own words', async () => {
    for (const [args, err] of [
      [['-a', 'two'], `Could not apply snapshot 'two': qcow2 "${disk}": has no snapshot "two"`],
      [['-d', 'two'], "Could not delete snapshot 'two': snapshot not found"],
      [['-c', 'x'.repeat(256)], 'the name of the snapshot has 256 bytes; QEMU tells names apart by their first 255'],
    ] as const) {
      expect(await cowdisk('snapshot', ...args, disk)).toEqual({ status: 1, out: '', err: `cowdisk: ${err}\n` });
    }
    expect(await names()).toEqual(['1 one']);
  });

  it('cuts long names between characters, as qemu-img cuts them', async () => {
    await called('qemu-img', ['snapshot', '-c', `a${'ä'.repeat(200)}`, disk]);
    expect(await names()).toEqual(['1 one', `2 a${'ä'.repeat(127)}`]);
    await called('qemu-img', ['snapshot', '-c', `${'ä'.repeat(200)}`, disk]);
    expect((await names())[2]).toBe(`3 ${'ä'.repeat(127)}`);
  });

  it('can be interrupted, and has then done nothing', async () => {
    const controller = new AbortController();
    controller.abort(new Interruption('SIGINT'));
    for (const args of [['-c', 'x'], ['-a', 'one'], ['-d', 'one'], ['-l']]) {
      const { status, err } = await called('cowdisk', ['snapshot', ...args, disk], controller.signal);
      expect({ status, err }).toEqual({ status: 130, err: `cowdisk: interrupted: '${disk}' is as it was\n` });
    }
    expect(await names()).toEqual(['1 one']);
    expect(await first()).toBe(2);
  });
});

describe('-l', () => {
  it('converts what the snapshot holds, with the size that it has', async () => {
    {
      await using image = await openImage(disk, { readOnly: false });
      await image.node.truncate(500 * KiB);
    }
    const copy = path('copy.raw');
    for (const param of ['one', '1', 'snapshot.id=1', 'snapshot.name=one', 'snapshot.id=1,snapshot.name=one']) {
      expect(await cowdisk('convert', '-l', param, '-O', 'raw', disk, copy), param).toEqual(SILENT);
      await using made = await openImage(copy, { format: 'raw' });
      expect(made.virtualSize).toBe(300 * KiB);
      expect((await made.read(0, 1))[0]).toBe(1);
    }
    expect(await cowdisk('convert', '-l', 'two', '-O', 'raw', disk, path('none'))).toEqual({
      status: 1,
      out: '',
      err: `cowdisk: Failed to load snapshot: qcow2 "${disk}": has no snapshot "two"\n`,
    });
  });

  it('measures what the snapshot holds', async () => {
    const { out } = await cowdisk('measure', '-l', 'one', '--output=json', '-O', 'raw', disk);
    expect(JSON.parse(out)).toMatchObject({ required: 300 * KiB });
    expect((await cowdisk('measure', '-l', 'two', disk)).err).toContain('Failed to load snapshot: ');
  });

  it('is for formats that have snapshots', async () => {
    const plain = path('plain.raw');
    await createImage(plain, { format: 'raw', size: 4 * KiB });
    const { status, err } = await cowdisk('convert', '-f', 'raw', '-l', 'x', plain, path('y'));
    expect({ status, err }).toEqual({
      status: 1,
      err: `cowdisk: Failed to load snapshot: raw "${plain}": holds no snapshots that could be opened\n`,
    });
  });
});

describe('info', () => {
  it('of the content of a snapshot has its size', async () => {
    {
      await using image = await openImage(disk, { readOnly: false });
      await image.node.truncate(500 * KiB);
    }
    expect((await imageInfo(disk)).virtualSize).toBe(500 * KiB);
    expect(await imageInfo(disk, { snapshot: 'one' })).toMatchObject({
      virtualSize: 300 * KiB,
      snapshots: [{ id: '1' }],
    });
  });
});
