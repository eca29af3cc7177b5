import { describe, expect, it } from 'vitest';
import { resolveOptions } from '../../../src/base/options.ts';
import { qcow2 } from '../../../src/formats/qcow2/driver.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import {
  closeAndCheck,
  headerOf,
  l2Tables,
  newDisk,
  openDisk,
  pattern,
  poke,
  readAll,
} from '../../support/qcow2-parts.ts';
import { checkQcow2, createQcow2Bytes } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const AUTOCLEAR_AT = 88;
const INCOMPATIBLE_AT = 72;

describe('probing', () => {
  const head = (bytes: Uint8Array): number => qcow2.probe({ head: bytes, fileSize: bytes.length, name: 'x' });
  it('knows versions 2 and later by magic, and nothing shorter than a header (Q-010)', async () => {
    const image = (await createQcow2Bytes(64 * KiB, {}, false)).bytes();
    expect(head(image)).toBe(100);
    expect(head(image.slice(0, 111))).toBe(0);
    const qcow1 = image.slice();
    qcow1[7] = 1;
    expect(head(qcow1)).toBe(0);
    const future = image.slice();
    future[7] = 9;
    expect(head(future)).toBe(100);
    expect(head(new Uint8Array(512))).toBe(0);
  });
});

describe('opening for writing', () => {
  it('clears unknown autoclear bits, keeps unknown compatible ones, and does neither read-only (Q-061, Q-062)', async () => {
    const file = await createQcow2Bytes(64 * KiB, {}, false);
    await poke(file, AUTOCLEAR_AT, 0x8000_0000n);
    await poke(file, 80, 0x100n);
    const before = file.bytes();
    await (await openDisk(file, { readOnly: true })).node.close();
    expect(file.bytes()).toEqual(before);
    const again = file.reopen();
    await (await openDisk(again)).node.close();
    expect(await headerOf(again.reopen())).toMatchObject({ autoclear: 0n, compatible: 0x100n });
  });

  it('repairs an image that was not closed cleanly before anything is written, and says so (Q-064, Q-232)', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 512, lazyRefcounts: true });
    await disk.node.write(0, pattern(8 * KiB));
    await disk.node.flush();
    // The machine stops here: refcounts are stale, the dirty bit is set.
    const crashed = MemoryStore.from(disk.file.bytes());
    expect((await headerOf(crashed)).incompatible % 2n).toBe(1n);
    expect((await checkQcow2(crashed)).corruptions).toBeGreaterThan(0);
    const again = await openDisk(crashed);
    expect(again.events).toMatchObject([{ type: 'repaired' }]);
    expect((await headerOf(crashed)).incompatible).toBe(0n);
    expect((await checkQcow2(crashed)).corruptions).toBe(0);
    await again.node.write(8 * KiB, pattern(512, 2));
    expect(await readAll(again.node, 0, 8 * KiB)).toEqual(pattern(8 * KiB));
    expect(await closeAndCheck(again)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('leaves a dirty image dirty when it only reads (Q-064)', async () => {
    const file = await createQcow2Bytes(64 * KiB, { lazyRefcounts: true }, false);
    await poke(file, INCOMPATIBLE_AT, 1n);
    const before = file.bytes();
    const { node } = await openDisk(file, { readOnly: true });
    expect((await node.format.info()).dirty).toBe(true);
    await node.close();
    expect(file.reopen().bytes()).toEqual(before);
  });

  it('refuses an image that is marked corrupt, which can still be read (Q-063)', async () => {
    const file = await createQcow2Bytes(64 * KiB, {}, false);
    await poke(file, INCOMPATIBLE_AT, 2n);
    await expect(openDisk(file)).rejects.toMatchObject({ code: 'ACCESS' });
    expect(await readAll((await openDisk(file, { readOnly: true })).node, 0, 512)).toEqual(new Uint8Array(512));
  });

  it('refuses a dirty image that cannot be repaired, and writes no guest data', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 512 });
    await disk.node.write(0, pattern(512));
    const { file } = await closeAndCheck(disk);
    const [l2] = await l2Tables(file);
    await poke(file, l2 as number, (1n << 63n) | 0x300n);
    await poke(file, INCOMPATIBLE_AT, 1n);
    await expect(openDisk(file)).rejects.toMatchObject({ code: 'CORRUPT', reason: 'qcow2.dirty-repair' });
  });
});

describe('lazy refcounts', () => {
  it('set the dirty bit before the first change and clear it at close (Q-065, Q-066)', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 512, lazyRefcounts: true });
    expect((await headerOf(disk.file)).incompatible).toBe(0n);
    await disk.node.write(0, pattern(512));
    expect((await headerOf(disk.file)).incompatible).toBe(1n);
    const { file, lines, leaks } = await closeAndCheck(disk);
    expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
    expect((await headerOf(file)).incompatible).toBe(0n);
  });

  it('can be switched on for one opening, but not in version 2', async () => {
    const file = await createQcow2Bytes(64 * KiB, {}, false);
    const { node } = await openDisk(file, { options: { lazyRefcounts: true } });
    await node.write(0, pattern(512));
    expect((await headerOf(file)).incompatible).toBe(1n);
    await node.close();
    const old = await createQcow2Bytes(64 * KiB, { compat: 'v2' }, false);
    await expect(openDisk(old, { options: { lazyRefcounts: true } })).rejects.toMatchObject({
      reason: 'qcow2.lazy-refcounts',
    });
  });
});

describe('cache options', () => {
  it('bound the tables in memory, and small ones still read and write right', async () => {
    const file = await createQcow2Bytes(1024 * KiB, {}, false);
    const { node } = await openDisk(file, {
      options: { l2CacheSize: 1024, refcountCacheSize: 2048, l2CacheEntrySize: 512 },
    });
    const data = pattern(512 * KiB);
    for (let at = 0; at < data.length; at += 8 * KiB) await node.write(at, data.subarray(at, at + 8 * KiB));
    expect(await readAll(node, 0, data.length)).toEqual(data);
    await node.close();
    expect(await checkQcow2(file.reopen())).toMatchObject({ lines: [], leaks: 0 });
  });
});

describe('an encrypted image', () => {
  it('is refused by name, but tells its facts', async () => {
    const file = await createQcow2Bytes(64 * KiB, {}, false);
    await file.write(32, new Uint8Array([0, 0, 0, 1]));
    await expect(openDisk(file, { readOnly: true })).rejects.toMatchObject({
      code: 'ENCRYPTED',
      reason: 'qcow2.encrypted',
    });
    const { node } = await openDisk(file, { readOnly: true, metadataOnly: true });
    expect(await node.format.info()).toMatchObject({ encrypted: true });
    expect(() => node.read(0, new Uint8Array(1))).toThrow(/needs a key/);
  });
});

describe('options', () => {
  it('have a value for everything that has a default', () => {
    expect(resolveOptions(qcow2.createOptions, {})).toMatchObject({
      clusterSize: 65536,
      compat: 'v3',
      refcountBits: 16,
    });
  });
});
