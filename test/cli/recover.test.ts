/** `recover`, as people use it: the new image, the report, the exit status, and what must not be touched. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { Interruption, MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { compareImages, createImage, createSnapshot, imageInfo, openImage, recoverImage } from '../../src/node.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const KiB = 1024;
const MiB = 1024 * KiB;

interface Said {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

async function called(args: readonly string[], signal?: AbortSignal, calledAs = 'cowdisk'): Promise<Said> {
  const out = new MemorySink();
  const err = new MemorySink();
  const status = await run({ calledAs, args, out, err, env: {}, signal: signal ?? new AbortController().signal });
  return { status, out: out.text, err: err.text };
}

const cowdisk = (...args: string[]): Promise<Said> => called(args);
let count = 0;
let disk: string;
let fresh: () => string;

beforeEach(async () => {
  count++;
  disk = path(`disk-${count}.qcow2`);
  let targets = 0;
  fresh = () => path(`new-${count}-${targets++}`);
  await createImage(disk, { format: 'qcow2', size: 4 * MiB, options: { clusterSize: 4096 } });
  await using image = await openImage(disk, { readOnly: false });
  await image.write(0, new Uint8Array(3 * MiB).fill(5));
});

async function blank(offset: number, length: number): Promise<void> {
  const file = await open(disk, 'r+');
  await file.write(new Uint8Array(length), 0, length, offset);
  await file.close();
}

describe('recover', () => {
  it('copies an image that is whole, and says that all of it is certain', async () => {
    const target = fresh();
    const { status, out, err } = await cowdisk('recover', disk, target);
    expect([status, err]).toEqual([0, '']);
    expect(out).toMatch(/certain +4 MiB +100\.00%\n/);
    expect((await compareImages(disk, target)).result).toBe('identical');
    expect((await imageInfo(target)).format).toBe('qcow2');
  });

  it('rebuilds one without header and says what is doubtful, in both forms', async () => {
    const whole = path(`whole-${count}.qcow2`);
    writeFileSync(whole, readFileSync(disk));
    await blank(0, 4096);
    const before = readFileSync(disk);
    const [target, report] = [fresh(), fresh()];
    const { status, out } = await cowdisk('recover', '--report', report, '--size', '4M', '-O', 'raw', disk, target);
    expect(status).toBe(2);
    expect(out).toContain('the header is lost');
    expect(out).toMatch(/0x0 +0x300000 +doubtful +data +header-lost/);
    expect((await compareImages(whole, target)).result).toBe('identical');
    expect(readFileSync(disk).equals(before)).toBe(true);
    const facts = JSON.parse(readFileSync(report, 'utf8'));
    expect(facts).toMatchObject({
      image: disk,
      target,
      certain: 0,
      doubtful: 4 * MiB,
      lost: 0,
      'virtual-size': 4 * MiB,
    });
    expect(facts.ranges[0]).toEqual({
      start: 0,
      length: 3 * MiB,
      state: 'doubtful',
      content: 'data',
      why: 'header-lost',
    });
    const json = JSON.parse((await cowdisk('recover', '--json', '--size', '4M', disk, fresh())).out);
    expect(json.ranges).toEqual(facts.ranges);
  });

  it('says that something is lost, and what it was told to leave out', async () => {
    // Refcount block, by the layout of a new image.
    await blank(2 * 4096, 4096);
    expect((await cowdisk('recover', '-q', disk, fresh())).status).toBe(2);
    const { status, out } = await cowdisk('recover', '--leave-out-doubtful', disk, fresh());
    expect(status).toBe(3);
    expect(out).toMatch(/lost +4 MiB +100\.00%/);
    expect(out).toContain('left-out');
  });

  it('counts what cannot be decompressed as lost', async () => {
    const packed = path(`packed-${count}.qcow2`);
    expect((await cowdisk('convert', '-c', '-O', 'qcow2', '-o', 'cluster_size=4k', disk, packed)).status).toBe(0);
    const bytes = readFileSync(packed);
    // In the first cluster behind the header, refcounts, L1 and L2 table: some cluster's encoded bytes.
    bytes.fill(0xff, 5 * 4096 + 100, 5 * 4096 + 112);
    writeFileSync(disk, bytes);
    const { status, out } = await cowdisk('recover', disk, fresh());
    expect(status).toBe(3);
    expect(out).toContain('unreadable');
  });

  it('recovers a snapshot, and an overlay with and without its backing file', async () => {
    await createSnapshot(disk, { name: 'before', date: new Date(0) });
    const image = await openImage(disk, { readOnly: false });
    await image.write(0, new Uint8Array(MiB).fill(9));
    await image.close();
    const target = fresh();
    expect([0, 2]).toContain((await cowdisk('recover', '-q', '-l', 'before', disk, target)).status);
    await using old = await openImage(target);
    expect((await old.read(0, 1))[0]).toBe(5);
    const overlay = path(`overlay-${count}.qcow2`);
    await createImage(overlay, { format: 'qcow2', size: 4 * MiB, backing: { name: target, format: 'qcow2' } });
    const [over, alone, kept] = [fresh(), fresh(), fresh()];
    expect((await cowdisk('recover', '-q', overlay, over)).status).toBe(0);
    expect((await cowdisk('recover', '-q', '--without-backing', overlay, alone)).status).toBe(0);
    await using first = await openImage(over);
    await using second = await openImage(alone);
    expect([(await first.read(0, 1))[0], (await second.read(0, 1))[0]]).toEqual([5, 0]);
    expect((await cowdisk('recover', '-q', '-B', target, '-F', 'qcow2', overlay, kept)).status).toBe(0);
    expect(readFileSync(kept).length).toBeLessThan(MiB);
  });

  it('writes to new files only', async () => {
    const target = fresh();
    writeFileSync(target, 'precious');
    const { status, err } = await cowdisk('recover', disk, target);
    expect([status, readFileSync(target, 'utf8')]).toEqual([1, 'precious']);
    expect(err).toContain('is there already');
    expect((await cowdisk('recover', disk, disk)).status).toBe(1);
    const reported = await cowdisk('recover', '--report', target, disk, fresh());
    expect([reported.status, readFileSync(target, 'utf8')]).toEqual([1, 'precious']);
  });

  it('leaves nothing behind when it is interrupted', async () => {
    const stop = new AbortController();
    stop.abort(new Interruption('SIGINT'));
    const [target, report] = [fresh(), fresh()];
    const { status, err } = await called(['recover', '--report', report, disk, target], stop.signal);
    expect(status).toBe(130);
    expect(err).toContain('was not made');
    expect(readdirSync(dirname(disk)).filter((name) => name.startsWith(`new-${count}`))).toEqual([]);
    const later = new AbortController();
    await expect(
      recoverImage(disk, target, {
        signal: later.signal,
        onProgress: ({ phase }) => phase !== 'scanning' && later.abort(new Error('enough')),
      }),
    ).rejects.toMatchObject({ code: 'ABORTED' });
    expect(existsSync(target)).toBe(false);
  });

  it('refuses what it cannot do, and is not there when called qemu-img', async () => {
    const raw = path(`${count}.raw`);
    writeFileSync(raw, new Uint8Array(MiB));
    expect((await cowdisk('recover', '-f', 'raw', raw, fresh())).status).toBe(63);
    expect((await cowdisk('recover', raw, fresh())).err).toContain('cluster size');
    expect((await cowdisk('recover', disk)).status).toBe(1);
    expect((await cowdisk('recover', '--lost', 'maybe', disk, fresh())).status).toBe(1);
    expect((await cowdisk('recover', '--cluster-size', '3k', disk, fresh())).err).toContain('cluster_size');
    expect((await cowdisk('recover', '-B', 'x', disk, fresh())).err).toContain('backing format');
    expect((await called(['recover', disk, fresh()], undefined, 'qemu-img')).status).toBe(1);
  });

  it('steps over the holes of a file that says it has a terabyte', async () => {
    const file = await open(disk, 'r+');
    await file.truncate(2 ** 40);
    await file.close();
    const target = fresh();
    expect((await cowdisk('recover', '-q', disk, target)).status).toBe(0);
    expect((await imageInfo(target)).virtualSize).toBe(4 * MiB);
  });
});
