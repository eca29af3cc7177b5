/** `diff`, as people and programs use it: forms of the list, exit statuses, mistakes. */
import { beforeAll, describe, expect, it } from 'vitest';
import { Interruption, MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { createImage, createSnapshot, openImage } from '../../src/node.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const MiB = 1024 * 1024;
const [base, overlay, larger] = [path('base.qcow2'), path('overlay.qcow2'), path('larger.raw')];

async function cowdisk(args: readonly string[], signal = new AbortController().signal) {
  const out = new MemorySink();
  const err = new MemorySink();
  const status = await run({ calledAs: 'cowdisk', args, out, err, env: {}, signal });
  return { status, out: out.text, err: err.text };
}

const diff = (...args: string[]) => cowdisk(['diff', ...args]);

beforeAll(async () => {
  await createImage(base, { format: 'qcow2', size: 4 * MiB });
  {
    await using image = await openImage(base, { readOnly: false });
    await image.write(0, new Uint8Array(MiB).fill(1));
  }
  await createImage(overlay, { format: 'qcow2', backing: { name: base, format: 'qcow2' } });
  {
    await using image = await openImage(overlay, { readOnly: false, references: 'allow' });
    await image.write(5000, Uint8Array.of(2, 2, 2));
    await image.writeZeroes(65536, 8192);
  }
  await createSnapshot(overlay, { name: 'before', date: new Date(0) }, { references: 'allow' });
  await using image = await openImage(overlay, { readOnly: false, references: 'allow' });
  await image.write(3 * MiB, new Uint8Array(4096).fill(3));
  await createImage(larger, { format: 'raw', size: 5 * MiB });
  await using raw = await openImage(larger, { format: 'raw', readOnly: false });
  await raw.write(0, new Uint8Array(MiB).fill(1));
});

describe('diff', () => {
  it('prints a table and what it comes to', async () => {
    expect(await diff(base, overlay)).toEqual({
      status: 1,
      err: '',
      out:
        'Offset          Length          What\n' +
        '0x1000          0x1000          changed\n' +
        '0x10000         0x2000          cleared\n' +
        '0x300000        0x1000          filled\n' +
        '3 ranges, 16384 bytes (4 KiB changed, 4 KiB filled, 8 KiB cleared), in blocks of 4 KiB.\n',
    });
    expect(await diff('--block=1', '-s', overlay, base)).toEqual({
      status: 1,
      err: '',
      out: '3 ranges, 12291 bytes (3 B changed, 8 KiB filled, 4 KiB cleared), exact to the byte.\n',
    });
  });

  it('prints JSON, whole and line by line', async () => {
    const whole = JSON.parse((await diff('--json', base, overlay)).out);
    const ranges = [
      { start: 4096, length: 4096, kind: 'changed' },
      { start: 65536, length: 8192, kind: 'cleared' },
      { start: 3 * MiB, length: 4096, kind: 'filled' },
    ];
    expect(whole).toEqual({
      filename: base,
      filename2: overlay,
      ranges,
      summary: {
        equal: false,
        'virtual-size': 4 * MiB,
        'virtual-size2': 4 * MiB,
        block: 4096,
        ranges: 3,
        bytes: 16384,
        changed: 4096,
        filled: 4096,
        cleared: 8192,
        'bytes-read': whole.summary['bytes-read'],
      },
    });
    const lines = (await diff('--output=jsonl', base, overlay)).out.trimEnd().split('\n');
    expect(lines.map((line) => JSON.parse(line))).toEqual([...ranges, { summary: whole.summary }]);
    expect(JSON.parse((await diff('--json', base, base)).out)).toMatchObject({ ranges: [], summary: { equal: true } });
    expect(JSON.parse((await diff('--json', '--summary', base, overlay)).out)).toEqual({
      filename: base,
      filename2: overlay,
      summary: whole.summary,
    });
  });

  it('says 0 for the same disk, 1 for another, also of another size, and is silent with -q', async () => {
    expect(await diff(base, base)).toEqual({ status: 0, out: 'The disks are the same.\n', err: '' });
    expect(await diff('-q', '-F', 'raw', base, larger)).toEqual({ status: 1, out: '', err: '' });
    expect((await diff('-F', 'raw', base, larger)).out).toBe(
      'The disks have different sizes: 4194304 and 5242880 bytes.\nWhat the smaller one holds is the same, and the rest is zeros.\n',
    );
  });

  it('takes snapshots for either disk', async () => {
    expect(await diff('-l', 'before', overlay, overlay)).toMatchObject({
      status: 1,
      out: expect.stringContaining('\n1 range, 4096 bytes (4 KiB filled)'),
    });
    expect((await diff('-l', 'before', '-L', 'snapshot.name=before', overlay, overlay)).status).toBe(0);
    expect(await diff('-L', 'never', overlay, overlay)).toMatchObject({
      status: 2,
      err: expect.stringContaining('Failed to load snapshot: '),
    });
  });

  it.each([
    [['--block=3', base, base], "--block: expected a power of two from 1 to 1M, not '3'"],
    [['--block=2M', base, base], "--block: expected a power of two from 1 to 1M, not '2M'"],
    [['--output=xml', base, base], "--output: expected human, json or jsonl, not 'xml'"],
    [[base], 'Expecting two image file names'],
    [[base, path('absent')], 'no such file or directory'],
    [['-f', 'qcow2', larger, base], 'larger.raw'],
    [['--nonsense', base, base], "unrecognized option '--nonsense'"],
  ])('ends with 2 for trouble: %j', async (args, message) => {
    const { status, out, err } = await diff(...args);
    expect([status, out]).toEqual([2, '']);
    expect(err.split('\n')[0]).toContain(message);
  });

  it('can be interrupted, and is not there for qemu-img', async () => {
    const stop = new AbortController();
    stop.abort(new Interruption('SIGINT'));
    expect(await cowdisk(['diff', base, overlay], stop.signal)).toMatchObject({ status: 130, out: '' });
  });
});
