/** What is told of damage that shows while an image is used, beside what the real QEMU tells: event, line, mark, and what still works afterwards. */
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlockError } from '../../src/base/errors.ts';
import type { Cli } from '../../src/cli/console.ts';
import { reportEvent } from '../../src/cli/open.ts';
import type { ImageEvent } from '../../src/core/format.ts';
import { checkImage, openImage } from '../../src/node.ts';
import type { MemoryStore } from '../../src/storage/memory.ts';
import { describeWithQemu, run, scratchDirectory } from '../formats/qcow2/support.ts';
import { closeAndCheck, newDisk, openDisk, pattern, poke } from '../support/qcow2-parts.ts';
import { COMPRESSED, COPIED, DAMAGES, Healthy, Patient } from './qcow2-damages.ts';

/** What the program prints of an event when it is called qemu-img. */
function lineOf(event: ImageEvent): string {
  const lines: string[] = [];
  const cli = {
    personality: { qemu: true, program: 'qemu-img' },
    err: { write: (text: string) => void lines.push(text) },
  } as unknown as Cli;
  reportEvent(cli, event);
  return lines.join('');
}

const PLAIN = DAMAGES.find(({ name }) => name === 'nothing');

describeWithQemu('damage that shows in use', () => {
  const directory = scratchDirectory();
  const path = (name: string) => join(directory, name);
  const healthy = new Healthy(directory);

  const make = (damage: (image: Patient) => void): void => {
    const patient = new Patient(Buffer.from(readFileSync(path(healthy.image(PLAIN as (typeof DAMAGES)[number])))));
    damage(patient);
    writeFileSync(path('theirs.qcow2'), patient.bytes);
    copyFileSync(path('theirs.qcow2'), path('ours.qcow2'));
  };
  const isMarked = (name: string): boolean => (readFileSync(path(name)).readBigUInt64BE(72) & 2n) !== 0n;

  it("on a read-only image is told once, with its offset, in QEMU's line, and nothing is changed (Q-221, Q-222, Q-223, Q-225)", async () => {
    make((image) => {
      image.setEntry(1, image.entry(1) + 512n);
      image.setEntry(2, image.entry(2) + 512n);
    });
    const before = readFileSync(path('ours.qcow2'));
    const { stderr } = run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', 'theirs.qcow2', 'out.raw'], directory);
    const events: ImageEvent[] = [];
    const image = await openImage(path('ours.qcow2'), { format: 'qcow2', onEvent: (event) => void events.push(event) });
    await expect(image.read(65536, 512)).rejects.toMatchObject({ code: 'CORRUPT' });
    await expect(image.read(131072, 512)).rejects.toMatchObject({ code: 'CORRUPT' });
    expect((await image.read(0, 512))[0]).toBe(1);
    await image.close();
    expect(events).toHaveLength(1);
    expect(events[0]).toMatchObject({ type: 'corrupted', fatal: false, offset: expect.any(Number) });
    const [line] = stderr.split('\n').filter((text) => text.startsWith('qcow2:'));
    expect(lineOf(events[0] as ImageEvent)).toBe(`${line}\n`);
    expect(readFileSync(path('ours.qcow2')).equals(before)).toBe(true);
  });

  it("on an image that is written is fatal: marked before the request fails, told in QEMU's line, and every later request fails (Q-067, Q-100, Q-222, Q-223, Q-224)", async () => {
    make((image) => image.setEntry(1, COPIED | BigInt(image.l1)));
    const io = ['-c', 'write 64k 4k', '-c', 'read 0 4k', 'theirs.qcow2'];
    const theirs = run('qemu-io', io, directory);
    const events: ImageEvent[] = [];
    const onEvent = (event: ImageEvent) => void events.push(event);
    const image = await openImage(path('ours.qcow2'), { format: 'qcow2', readOnly: false, onEvent });
    await expect(image.write(65536, pattern(4096))).rejects.toMatchObject({ code: 'CORRUPT', reason: 'qcow2.overlap' });
    expect(isMarked('ours.qcow2')).toBe(true);
    expect(isMarked('theirs.qcow2')).toBe(true);
    await expect((async () => await image.read(0, 4096))()).rejects.toMatchObject({ reason: 'engine.condemned' });
    await expect((async () => await image.write(0, pattern(512)))()).rejects.toMatchObject({
      reason: 'engine.condemned',
    });
    await image.close().catch(() => undefined);
    expect(events).toHaveLength(1);
    expect(events[0]).toMatchObject({ fatal: true, offset: expect.any(Number), size: expect.any(Number) });
    const [line] = theirs.stderr.split('\n').filter((text) => text.startsWith('qcow2:'));
    expect(lineOf(events[0] as ImageEvent)).toBe(`${line}\n`);
    expect(theirs.stdout + theirs.stderr).toContain('No medium found');
    // as QEMU: reading is allowed, writing is not
    await expect(openImage(path('ours.qcow2'), { format: 'qcow2', readOnly: false })).rejects.toMatchObject({
      reason: 'qcow2.corrupt',
    });
  });

  it('in a compressed write is found before anything is written (Q-173)', async () => {
    const { file } = await closeAndCheck(await newDisk({ size: 256 * 1024, clusterSize: 4096 }));
    const image = new Patient(Buffer.from(file.bytes()));
    // every refcount says free, but the clusters are in use
    await file.write(image.refcountBlock, new Uint8Array(4096));
    const { node, events } = await openDisk(file);
    const before = file.bytes();
    await expect(node.write(0, pattern(4096), { compressed: true })).rejects.toMatchObject({ code: 'CORRUPT' });
    expect(events).toMatchObject([{ type: 'corrupted', fatal: true }]);
    const after = file.bytes();
    expect(Buffer.compare(after.subarray(80), before.subarray(80))).toBe(0);
  });

  it('leaves the close of a sound image alone: tables are written back under all checks (Q-111)', async () => {
    const { node, events, file } = await newDisk({ size: 256 * 1024, clusterSize: 512 });
    const all = await openDisk(await closedCopy(node, file), { options: { overlapCheck: 'all' } });
    for (let at = 0; at < 200 * 1024; at += 40 * 1024) await all.node.write(at, pattern(5000));
    await all.node.close();
    expect([...events, ...all.events]).toEqual([]);
  });

  it('is reported even where the mark cannot be written (Q-224)', async () => {
    const { file } = await closeAndCheck(await withData());
    const image = new Patient(Buffer.from(file.bytes()));
    await poke(file, image.l2(1), COPIED | BigInt(image.l1));
    const { node, events } = await openDisk(file);
    file.write = () => {
      throw new BlockError('IO', 'the device is gone', { details: { errno: 'EIO' } });
    };
    await expect(node.write(4096, pattern(512))).rejects.toMatchObject({ reason: 'qcow2.overlap' });
    expect(events.map(({ type }) => type)).toEqual(['corrupted', 'warning']);
  });

  it('of an offset that no number holds is told without an offset (Q-223)', async () => {
    const { file } = await closeAndCheck(await withData());
    const image = new Patient(Buffer.from(file.bytes()));
    await poke(file, image.l2(1), (1n << 55n) | 0x200n);
    const { node, events } = await openDisk(file);
    await expect((async () => await node.read(4096, new Uint8Array(512)))()).rejects.toMatchObject({ code: 'CORRUPT' });
    expect(events).toHaveLength(1);
    expect(Object.keys(events[0] as ImageEvent)).not.toContain('offset');
  });

  it("is what check finds, and check is the same with and without the library's own doors (Q-230)", async () => {
    make((image) => {
      image.setRefcount(image.clusterOf(0), 0);
      image.setEntry(3, COMPRESSED | (1n << 54n));
    });
    const { stdout } = run('qemu-img', ['check', '-f', 'qcow2', '--output=json', 'theirs.qcow2'], directory);
    const { result } = await checkImage(path('ours.qcow2'), { format: 'qcow2' });
    const { corruptions } = JSON.parse(stdout) as { corruptions: number };
    expect(result.corruptions).toBe(corruptions);
    const repaired = await checkImage(path('ours.qcow2'), { format: 'qcow2', fix: 'all' });
    expect(repaired.result).toMatchObject({ corruptions: 0, leaks: 0 });
  });
});

async function withData() {
  const disk = await newDisk({ size: 64 * 1024, clusterSize: 4096 });
  await disk.node.write(0, pattern(8192));
  return disk;
}

async function closedCopy(node: { close(): Promise<void> }, file: MemoryStore): Promise<MemoryStore> {
  await node.close();
  return file.reopen();
}
