/** `bitmap` and `convert --bitmaps` as people use them; what qemu-img says is among the transcripts. */
import { beforeEach, describe, expect, it } from 'vitest';
import { MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { changeBitmap, convertImage, createImage, listBitmaps, openImage } from '../../src/node.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const KiB = 1024;

interface Said {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

async function cowdisk(...args: string[]): Promise<Said> {
  const out = new MemorySink();
  const err = new MemorySink();
  const signal = new AbortController().signal;
  const status = await run({ calledAs: 'cowdisk', args, out, err, env: {}, signal });
  return { status, out: out.text, err: err.text };
}

const SILENT = { status: 0, out: '', err: '' };
const disk = path('disk.qcow2');

beforeEach(async () => {
  await createImage(disk, { format: 'qcow2', size: 300 * KiB });
  expect(await cowdisk('bitmap', '--add', '-g', '4k', disk, 'since backup')).toEqual(SILENT);
  await using image = await openImage(disk, { readOnly: false });
  await image.write(20 * KiB, new Uint8Array(10 * KiB));
  await image.writeZeroes(299 * KiB, KiB);
});

describe('bitmap', () => {
  it('shows what was written to', async () => {
    expect(await cowdisk('bitmap', '--dirty', disk, 'since backup')).toEqual({
      status: 0,
      out: 'Offset          Length\n0x5000          0x3000\n0x4a000         0x1000\n',
      err: '',
    });
    const { out } = await cowdisk('bitmap', '--dirty', '--json', disk, 'since backup');
    expect(JSON.parse(out)).toEqual([
      { start: 0x5000, length: 0x3000 },
      { start: 0x4a000, length: 0x1000 },
    ]);
    await cowdisk('bitmap', '--clear', disk, 'since backup');
    expect(await cowdisk('bitmap', '--dirty', disk, 'since backup')).toEqual(SILENT);
    expect((await cowdisk('bitmap', '--dirty', '--json', disk, 'since backup')).out).toBe('[]\n');
  });

  it('lists bitmaps, and what they have recorded', async () => {
    await cowdisk('bitmap', '--add', '--disable', disk, 'frozen');
    expect(await cowdisk('bitmap', disk)).toEqual({
      status: 0,
      out:
        'GRANULARITY  STATE          DIRTY BYTES  NAME\n' +
        '       4096  recording            16384  since backup\n' +
        '      65536  disabled                 0  frozen\n',
      err: '',
    });
    expect(JSON.parse((await cowdisk('bitmap', '--json', disk)).out)).toEqual([
      { name: 'since backup', granularity: 4096, recording: true, 'in-use': false, 'dirty-bytes': 16384 },
      { name: 'frozen', granularity: 65536, recording: false, 'in-use': false, 'dirty-bytes': 0 },
    ]);
    await createImage(disk, { format: 'qcow2', size: KiB });
    expect(await cowdisk('bitmap', disk)).toEqual(SILENT);
  });

  it('says what is wrong in its own words', async () => {
    const said = async (...args: string[]): Promise<string> => (await cowdisk('bitmap', ...args)).err;
    expect(await said('--dirty', disk, 'gone')).toBe(`cowdisk: qcow2 "${disk}": has no bitmap 'gone'\n`);
    expect(await said('--add', disk, 'since backup')).toBe(
      `cowdisk: Operation add on bitmap since backup failed: qcow2 "${disk}": has a bitmap 'since backup' already\n`,
    );
    expect(await said('--dirty', disk)).toContain('cowdisk: Expecting filename and bitmap name\n');
    expect(await said('--dirty', '--clear', disk, 'x')).toContain('--dirty: ');
    expect(await said('-g', '4k', disk)).toContain('--granularity: ');
    const raw = path('disk.raw');
    await createImage(raw, { format: 'raw', size: 64 * KiB });
    expect(await said('--add', '-f', 'raw', raw, 'x')).toBe(
      `cowdisk: Operation add on bitmap x failed: raw "${raw}": cannot hold dirty bitmaps\n`,
    );
    expect(await said('--dirty', '-f', 'raw', raw, 'x')).toBe(`cowdisk: raw "${raw}": has no bitmap 'x'\n`);
  });
});

describe('converting with bitmaps', () => {
  it('takes along what they have recorded, and nothing of the conversion', async () => {
    await cowdisk('bitmap', '--add', '--merge', 'since backup', '--disable', disk, 'frozen');
    const copy = path('copy.qcow2');
    expect(await cowdisk('convert', '--bitmaps', '-O', 'qcow2', disk, copy)).toEqual(SILENT);
    expect(await listBitmaps(copy)).toEqual(await listBitmaps(disk));
    for (const name of ['since backup', 'frozen']) {
      expect((await cowdisk('bitmap', '--dirty', copy, name)).out).toBe(
        (await cowdisk('bitmap', '--dirty', disk, name)).out,
      );
    }
  });

  it('refuses what cannot be done before the target is touched', async () => {
    const failure = (sources: string[], target: object): Promise<unknown> =>
      convertImage(sources, { name: path('x'), format: 'qcow2', ...target }, { bitmaps: 'all' }).catch(
        (error: unknown) => error,
      );
    expect(await failure([disk, disk], {})).toMatchObject({ reason: 'convert.bitmaps-concat' });
    const raw = path('disk.raw');
    await createImage(raw, { format: 'raw', size: 64 * KiB });
    expect(await failure([raw], {})).toMatchObject({ reason: 'convert.bitmaps-source' });
    expect(await failure([disk], { format: 'raw' })).toMatchObject({ reason: 'convert.bitmaps-target' });
    const there = path('there.qcow2');
    await createImage(there, { format: 'qcow2', size: 300 * KiB });
    await changeBitmap(there, 'since backup', [{ action: 'add' }]);
    expect(await failure([disk], { name: there, existing: true })).toMatchObject({ reason: 'convert.bitmap-create' });
  });
});
