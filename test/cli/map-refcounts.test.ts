/** `map --refcounts`: the file's clusters and who counts on them. */
import { expect, it } from 'vitest';
import { MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();

async function called(calledAs: string, ...args: string[]) {
  const out = new MemorySink();
  const err = new MemorySink();
  const status = await run({ calledAs, args, out, err, env: {}, signal: new AbortController().signal });
  return { status, out: out.text, err: err.text };
}

const cowdisk = (...args: string[]) => called('cowdisk', ...args);

it('shows runs of equal refcounts, for people and for programs, whether or not the backing file is there (Q-247)', async () => {
  const image = path('image.qcow2');
  await cowdisk('create', '-q', '-f', 'qcow2', image, '1M');
  await cowdisk('snapshot', '-c', 'a', image);
  await cowdisk('rebase', '-u', '-b', path('gone'), '-F', 'raw', image);
  // Header; the tables that the snapshot left behind; the tables of disk and snapshot.
  expect(await cowdisk('map', '--refcounts', image)).toEqual({
    status: 0,
    err: '',
    out:
      'File offset     Length          Refcount\n' +
      '0               0x10000         1\n' +
      '0x10000         0x30000         0\n' +
      '0x40000         0x50000         1\n',
  });
  expect(JSON.parse((await cowdisk('map', '--refcounts', '--json', image)).out)).toEqual([
    { offset: 0, length: 0x10000, refcount: 1 },
    { offset: 0x10000, length: 0x30000, refcount: 0 },
    { offset: 0x40000, length: 0x50000, refcount: 1 },
  ]);
});

it('is of no use with ranges of the disk, for formats that count nothing, and for qemu-img (Q-247)', async () => {
  const image = path('image.raw');
  await cowdisk('create', '-q', '-f', 'raw', image, '1M');
  const ranged = await cowdisk('map', '--refcounts', '-s', '4k', image);
  expect(ranged.status).toBe(1);
  expect(ranged.err).toContain('--start-offset is about the disk');
  const plain = await cowdisk('map', '--refcounts', '-f', 'raw', image);
  expect(plain.status).toBe(1);
  expect(plain.err).toContain('the format counts no references');
  expect((await called('qemu-img', 'map', '--refcounts', image)).status).toBe(1);
});
