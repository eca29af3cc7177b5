/** `delta` and `apply`, as people and programs use them: files, pipes, forms of output, mistakes, interruptions. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { Interruption, MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { compareImages, createImage, openImage } from '../../src/node.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const MiB = 1024 * 1024;
const PROGRAM = fileURLToPath(new URL('../../bin/cowdisk.js', import.meta.url));
const [before, after] = [path('before.qcow2'), path('after.raw')];
let count = 0;
let copy: string;
let file: string;

async function cowdisk(
  args: readonly string[],
  signal = new AbortController().signal,
  input?: AsyncIterable<Uint8Array>,
) {
  const out = new MemorySink();
  const err = new MemorySink();
  const status = await run({
    calledAs: 'cowdisk',
    args,
    out,
    err,
    env: {},
    signal,
    ...(input === undefined ? {} : { input }),
  });
  return { status, out: out.text, err: err.text };
}

const called = (...args: string[]) => cowdisk(args);

async function* stream(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

beforeAll(async () => {
  await createImage(before, { format: 'qcow2', size: 2 * MiB });
  await createImage(after, { format: 'raw', size: 3 * MiB });
  await using old = await openImage(before, { readOnly: false });
  await old.write(0, new Uint8Array(MiB).fill(1));
  await using disk = await openImage(after, { format: 'raw', readOnly: false });
  await disk.write(0, new Uint8Array(MiB / 2).fill(1));
  await disk.write(2 * MiB, new Uint8Array(10_000).fill(2));
});

beforeEach(() => {
  count++;
  copy = path(`copy-${count}.qcow2`);
  file = path(`file-${count}.delta`);
  writeFileSync(copy, readFileSync(before));
});

const made = (...more: string[]) => called('delta', '-F', 'raw', ...more, before, after, file);

describe('delta and apply', () => {
  it('take a difference to another image, and say what they did', async () => {
    expect(await made()).toEqual({
      status: 0,
      err: '',
      out: expect.stringMatching(/^.*\.delta: 12 KiB of data and 512 KiB of zeros in \d+ B\.\n$/),
    });
    expect(await called('apply', copy, file)).toEqual({
      status: 0,
      err: '',
      out: `${copy}: 12 KiB of data and 512 KiB of zeros changed; the disk is verified.\n`,
    });
    expect(await compareImages(copy, after)).toEqual({ result: 'identical', sizeMismatch: false });
    expect(await called('apply', copy, file)).toEqual({
      status: 0,
      err: '',
      out: `${copy}: is up to date already; nothing was written.\n`,
    });
  });

  it('speak JSON', async () => {
    const delta = JSON.parse((await made('--json')).out);
    expect(delta).toEqual({
      filename: file,
      'old-size': 2 * MiB,
      'new-size': 3 * MiB,
      'old-checksum': expect.stringMatching(/^[0-9a-f]{64}$/),
      'new-checksum': expect.stringMatching(/^[0-9a-f]{64}$/),
      records: 2,
      'data-bytes': 12288,
      'zero-bytes': MiB / 2,
      'file-size': readFileSync(file).length,
    });
    expect(JSON.parse((await called('apply', '--output=json', copy, file)).out)).toEqual({
      filename: copy,
      delta: file,
      outcome: 'applied',
      verified: true,
      'old-size': 2 * MiB,
      'new-size': 3 * MiB,
      records: 2,
      'data-bytes': 12288,
      'zero-bytes': MiB / 2,
    });
  });

  it('work through pipes', () => {
    const delta = `${process.execPath} ${PROGRAM} delta -F raw -c deflate ${before} ${after} -`;
    const apply = `${process.execPath} ${PROGRAM} apply ${copy} -`;
    const { status, stdout, stderr } = spawnSync('sh', ['-c', `${delta} | ${apply}`], { encoding: 'utf8' });
    expect([status, stderr]).toEqual([0, '']);
    expect(stdout).toContain('the disk is verified');
  });

  it('go without checksums where that is asked for, and say that nothing was verified', async () => {
    const { out } = await made('--no-checksum', '--json');
    expect(JSON.parse(out)).not.toHaveProperty('old-checksum');
    expect((await called('apply', copy, file)).out).toContain('the disk was not verified');
    await made();
    writeFileSync(copy, readFileSync(before));
    expect((await called('apply', '--no-verify', copy, file)).out).toContain('the disk was not verified');
  });

  it('refuse another disk, and finish what was interrupted', async () => {
    await made('-c', 'none', '-q');
    const delta = readFileSync(file);
    const cut = await cowdisk(['apply', copy, '-'], undefined, stream(delta.subarray(0, 5000)));
    expect(cut).toMatchObject({ status: 1, out: '' });
    expect(cut.err).toBe(
      `cowdisk: delta "standard input": is cut off at 0x1388; '${copy}' holds a part of the delta; apply it again with --resume\n`,
    );
    const refused = await called('apply', copy, file);
    expect(refused).toMatchObject({ status: 1, out: '' });
    expect(refused.err).toMatch(/does not hold the disk that the delta was made from: .*add --resume\n$/);
    expect(await called('apply', '-q', '--resume', copy, file)).toEqual({ status: 0, out: '', err: '' });
  });

  it('say what an interruption left', async () => {
    await made();
    const stop = new AbortController();
    stop.abort(new Interruption('SIGINT'));
    const other = path(`never-${count}`);
    expect(await cowdisk(['delta', '-F', 'raw', before, after, other], stop.signal)).toMatchObject({ status: 130 });
    expect(existsSync(other)).toBe(false);
    expect(await cowdisk(['apply', copy, file], stop.signal)).toMatchObject({
      status: 130,
      err: `cowdisk: interrupted: '${copy}' is as it was\n`,
    });
    const late = new AbortController();
    const input = (async function* () {
      const bytes = readFileSync(file);
      yield bytes.subarray(0, bytes.length - 60);
      late.abort(new Interruption('SIGTERM'));
      yield bytes.subarray(bytes.length - 60);
    })();
    expect(await cowdisk(['apply', copy, '-'], late.signal, input)).toMatchObject({
      status: 143,
      err: `cowdisk: interrupted: '${copy}' holds a part of the delta; apply it again with --resume\n`,
    });
  });

  it.each([
    [['delta', 'a', 'b'], 'Expecting two image file names and the name of the delta file'],
    [['delta', '-c', 'xz', 'a', 'b', 'c'], "--compression: expected zstd, deflate or none, not 'xz'"],
    [['delta', '--block=5', 'a', 'b', 'c'], "--block: expected a power of two from 1 to 1M, not '5'"],
    [['delta', '--json', before, before, '-'], '--json: standard output takes the delta; name a file for it'],
    [['delta', '--progress=qemu', before, before, '-'], '--progress=qemu: standard output takes the delta'],
    [['delta', before, before, before], 'a file of one of the images; name another one'],
    [['delta', before, path('absent'), path('x')], 'no such file or directory'],
    [['apply', before], 'Expecting one image file name and the name of the delta file'],
    [['apply', before, path('absent')], 'no such file or directory'],
    [['apply', before, after], 'does not begin as a delta does'],
    [['apply', '--resum', before, after], 'does not begin as a delta does'],
  ])('answer mistakes in one line: %j', async (args, message) => {
    const { status, out, err } = await cowdisk(args);
    expect([status, out]).toEqual([1, '']);
    expect(err.split('\n')[0]).toContain(message);
    expect(err.split('\n').slice(1).join('')).toMatch(/^(Try 'cowdisk help \w+' for more information)?$/);
  });
});
