import { describe, expect, it } from 'vitest';
import { GiB, KiB, MiB, TiB } from '../../../src/base/sizes.ts';
import { ExtentList } from '../../../src/core/extent.ts';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { RunList } from '../../../src/core/run.ts';
import { CacheBudget } from '../../../src/core/table-cache.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { FaultStore } from '../../../src/testing/fault-store.ts';
import { LateStore } from '../../../src/testing/late-store.ts';
import { RecordingStore, WriteLog } from '../../../src/testing/recording-store.ts';
import {
  type AddCowVariant,
  checkAddCow,
  createAddCowFiles,
  openAddCow,
  STALE,
  unitOf,
} from '../../support/add-cow-under-test.ts';
import { ended, ManualStore, turn } from '../../support/manual-store.ts';
import { contentOf, failureOf, filled, pattern } from './support.ts';

const V9: AddCowVariant = { compat: 'v9' };

function backingOf(size: number): MemoryStore {
  return MemoryStore.from(filled(size, 0xbb), { name: 'backing', readOnly: true });
}

function manual(store: MemoryStore): ManualStore {
  const held = new ManualStore(0, store.name);
  held.bytes = store.bytes();
  return held;
}

interface Held {
  readonly file: ManualStore;
  readonly image: ManualStore;
  readonly node: MappedNode;
}

/** An image whose files end their requests when the test says so. */
async function openHeld(size: number, variant: AddCowVariant = {}): Promise<Held> {
  const made = await createAddCowFiles(size, variant, true);
  const file = manual(made.file);
  const image = manual(made.image);
  return { file, image, node: await openAddCow(file, image, { backing: backingOf(size) }) };
}

async function extentsOf(node: MappedNode): Promise<string[]> {
  const list = new ExtentList();
  const lines: string[] = [];
  for (let at = 0; at < node.size; at = list.end) {
    list.reset(at);
    await node.extents(at, node.size - at, list);
    for (const { start, length, depth, present, zero, data, hostOffset, node: where } of list) {
      const flags = [present && 'present', zero && 'zero', data && 'data'].filter((flag) => flag !== false).join(' ');
      lines.push(`${start}+${length} d${depth} ${flags}${hostOffset === undefined ? '' : ` ${where}@${hostOffset}`}`);
    }
  }
  return lines;
}

describe('an add-cow disk', () => {
  for (const variant of [V9, {}]) {
    const unit = unitOf(variant);
    const size = 5 * unit + 1024;

    it(`A-018: tells where every range comes from: ${variant.compat ?? 'v20'}`, async () => {
      const { file, image } = await createAddCowFiles(size, variant, true);
      const node = await openAddCow(file, image, { backing: backingOf(4 * unit) });
      await node.write(unit, pattern(unit));
      await node.writeZeroes(2 * unit, unit);
      expect(await extentsOf(node)).toEqual([
        `0+${unit} d1 present data backing@0`,
        `${unit}+${unit} d0 present data image@${unit}`,
        `${2 * unit}+${unit} d0 present zero data image@${2 * unit}`,
        `${3 * unit}+${unit} d1 present data backing@${3 * unit}`,
        `${4 * unit}+${unit + 1024} d0 zero`,
      ]);
    });

    it(`A-020: a write into the last cluster, which is a part of one, makes no file longer: ${variant.compat ?? 'v20'}`, async () => {
      const { file, image } = await createAddCowFiles(size, variant, true);
      const length = file.size;
      const node = await openAddCow(file, image, { backing: backingOf(9 * unit) });
      await node.write(size - 500, pattern(10));
      await node.flush();
      const wanted = filled(size, 0xbb);
      wanted.set(pattern(10), size - 500);
      expect(await contentOf(node)).toEqual(wanted);
      expect([image.size, file.size]).toEqual([size, length]);
      expect(image.bytes().subarray(5 * unit)).toEqual(wanted.subarray(5 * unit));
      expect(image.bytes().subarray(0, 5 * unit)).toEqual(filled(5 * unit, STALE));
    });

    it(`A-022: a bitmap that ends before the file does reads as zeros, and grows when it is written: ${variant.compat ?? 'v20'}`, async () => {
      const { file, image } = await createAddCowFiles(20 * unit, variant, true);
      const bitmapOffset = variant.compat === 'v9' ? 2560 : 4096;
      await file.truncate(bitmapOffset);
      const node = await openAddCow(file, image, { backing: backingOf(20 * unit) });
      expect(await contentOf(node)).toEqual(filled(20 * unit, 0xbb));
      await node.write(17 * unit, filled(unit, 1));
      await node.close();
      const again = await openAddCow(file.reopen(), image.reopen(), { readOnly: true, backing: backingOf(20 * unit) });
      const wanted = filled(20 * unit, 0xbb).fill(1, 17 * unit, 18 * unit);
      expect(await contentOf(again)).toEqual(wanted);
      expect(again.children[0]?.node.size).toBe(bitmapOffset + 3);
    });
  }

  it('A-003: what follows the bitmap, and bits past the end of the disk, mean nothing', async () => {
    const { file, image } = await createAddCowFiles(9 * 4096, {}, true);
    await file.write(4096, Uint8Array.of(0, 0xfe));
    await file.write(8192, filled(5000, 0xff));
    const node = await openAddCow(file, image, { backing: backingOf(9 * 4096) });
    expect(await contentOf(node)).toEqual(filled(9 * 4096, 0xbb));
  });

  it('R7: a whole disk without a bit set is one run for each table', async () => {
    const { file, image } = await createAddCowFiles(TiB, { clusterSize: 64 * KiB }, true);
    const node = await openAddCow(file, image, { backing: backingOf(0) });
    const runs = new RunList();
    let calls = 0;
    for (let at = 0; at < TiB; at = runs.guestEnd) {
      runs.reset(at, TiB);
      await node.format.map(at, TiB - at, runs);
      expect(runs.count).toBe(1);
      calls++;
    }
    expect(calls).toBeLessThanOrEqual(TiB / (32 * GiB) + 1);
  });

  it('A-020, A-005: beyond 32 GiB each cluster has its own bit', async () => {
    const { file, image } = await createAddCowFiles(200 * GiB, V9, true);
    const node = await openAddCow(file, image, { backing: backingOf(0) });
    const places = [0, 32 * GiB, 64 * GiB - 100, 96 * GiB + 5 * 65536, 200 * GiB - 1];
    for (const [i, at] of places.entries()) await node.write(at, Uint8Array.of(i + 1));
    await node.flush();
    const bitmap = file.bytes().subarray(2560);
    const set: number[] = [];
    bitmap.forEach((byte, at) => {
      for (let bit = 0; bit < 8; bit++) if (Math.floor(byte / 2 ** bit) % 2 === 1) set.push(at * 8 + bit);
    });
    expect(set).toEqual(places.map((at) => Math.floor(at / 65536)));
    await node.close();
    const again = await openAddCow(file.reopen(), image.reopen(), { readOnly: true, backing: backingOf(0) });
    for (const [i, at] of places.entries()) expect(await contentOf(again, at, 1)).toEqual(Uint8Array.of(i + 1));
    expect(await contentOf(again, 32 * GiB + 65536, 65536)).toEqual(new Uint8Array(65536));
  });

  it('A-017, A-027: everything is durable after a flush, and after close', async () => {
    const { file, image } = await createAddCowFiles(20 * KiB, {}, true);
    const log = new WriteLog();
    const stores = [new RecordingStore(file, { log }), new RecordingStore(image, { log })] as const;
    const node = await openAddCow(...stores, { backing: backingOf(20 * KiB) });
    await node.write(0, pattern(4096));
    await node.flush();
    const kinds = log.entries.map(({ kind, store }) => `${kind} ${store.name}`);
    // A-021: data, flush of the image file, bits, flush of the add-cow file.
    const bits = kinds.lastIndexOf('write disk');
    expect(kinds.indexOf('write image')).toBeLessThan(kinds.indexOf('flush image'));
    expect(kinds.indexOf('flush image')).toBeLessThan(bits);
    expect(kinds.indexOf('flush disk', bits)).toBeGreaterThan(bits);
    await node.write(0, pattern(10));
    log.clear();
    await node.flush();
    expect(log.entries.map(({ kind, store }) => `${kind} ${store.name}`).sort()).toEqual(['flush disk', 'flush image']);
  });

  it('asks for no flush before the last one when nobody wants durability', async () => {
    const { file, image } = await createAddCowFiles(20 * KiB, {}, true);
    const log = new WriteLog();
    const stores = [new RecordingStore(file, { log }), new RecordingStore(image, { log })] as const;
    const node = await openAddCow(...stores, { backing: backingOf(20 * KiB), unsafe: true });
    await node.write(0, pattern(4096));
    await node.flush();
    expect(log.entries.filter(({ kind }) => kind === 'flush')).toEqual([]);
    await node.close();
    const again = await openAddCow(file.reopen(), image.reopen(), { readOnly: true, backing: backingOf(20 * KiB) });
    expect(await contentOf(again, 0, 4096)).toEqual(pattern(4096));
  });
});

describe('R1: the size of the disk', () => {
  it('is what the image file says of its length, at the moment of opening', async () => {
    const { file, image } = await createAddCowFiles(20 * KiB, {}, true);
    await image.truncate(30 * KiB + 512);
    const node = await openAddCow(file, image, { readOnly: true, backing: backingOf(0) });
    expect(node.size).toBe(30 * KiB + 512);
  });
});

describe('R2: clusters that are allocated', () => {
  it('are written side by side, without any lock', async () => {
    const { image, node } = await openHeld(20 * KiB);
    await node.write(0, filled(8192, 1));
    image.hold.add('write');
    const writes = [0, 1000, 3000, 4096, 100].map((at, i) => node.write(at, filled(50, 2 + i)));
    await turn();
    expect(image.of('write')).toHaveLength(5);
    await image.drain();
    await Promise.all(writes);
    expect(await contentOf(node, 100, 50)).toEqual(filled(50, 6));
  });

  it('are written while another is being allocated', async () => {
    const { image, node } = await openHeld(20 * KiB);
    await node.write(0, filled(4096, 1));
    image.hold.add('write');
    const allocating = node.write(4096 + 10, filled(5, 2)) as Promise<void>;
    await turn();
    const inPlace = node.write(7, filled(5, 3)) as Promise<void>;
    await turn();
    expect(image.of('write')).toHaveLength(2);
    image.of('write')[1]?.finish();
    await inPlace;
    expect(await ended(allocating)).toBe(false);
    await image.drain();
    await allocating;
  });
});

describe('R4, R10: a cluster that two requests want', () => {
  it('is allocated by one of them, and the other writes over what that copied', async () => {
    const { image, node } = await openHeld(20 * KiB);
    image.hold.add('write');
    const first = node.write(512, filled(512, 1)) as Promise<void>;
    const second = node.write(2048, filled(512, 2)) as Promise<void>;
    await turn();
    // One write of the whole cluster, edges included, and nothing else yet.
    expect(image.log).toEqual(['write 0+4096']);
    image.of('write')[0]?.finish();
    await turn();
    expect(image.log).toEqual(['write 0+4096', 'write 2048+512']);
    await image.drain();
    await Promise.all([first, second]);
    const wanted = filled(4096, 0xbb).fill(1, 512, 1024).fill(2, 2048, 2560);
    expect(await contentOf(node, 0, 4096)).toEqual(wanted);
    expect(image.bytes.subarray(0, 4096)).toEqual(wanted);
  });

  it('is neither zeroed nor discarded under an allocation', async () => {
    const { image, node } = await openHeld(20 * KiB);
    image.hold.add('write').add('zero');
    const writing = node.write(100, filled(10, 1)) as Promise<void>;
    await turn();
    const zeroing = node.writeZeroes(0, 4096) as Promise<void>;
    const dropping = node.discard(0, 4096) as Promise<void>;
    await turn();
    expect(image.held).toHaveLength(1);
    await image.drain();
    await Promise.all([writing, zeroing, dropping]);
    expect(await contentOf(node, 0, 4096)).toEqual(new Uint8Array(4096));
  });

  it('shows its backing file to readers until everything of it is written', async () => {
    const { image, node } = await openHeld(20 * KiB);
    image.hold.add('write');
    const writing = node.write(100, filled(10, 1)) as Promise<void>;
    await turn();
    expect(await contentOf(node, 0, 4096)).toEqual(filled(4096, 0xbb));
    await image.drain();
    await writing;
    expect(await contentOf(node, 0, 4096)).toEqual(filled(4096, 0xbb).fill(1, 100, 110));
  });
});

describe('R5: an error', () => {
  async function faulty(
    variant: AddCowVariant = {},
  ): Promise<{ file: FaultStore; image: FaultStore; node: MappedNode }> {
    const made = await createAddCowFiles(20 * KiB, variant, true);
    const file = new FaultStore(made.file);
    const image = new FaultStore(made.image);
    return { file, image, node: await openAddCow(file, image, { backing: backingOf(20 * KiB) }) };
  }

  it('of loading a table is the answer of reads and writes, and nothing is written then', async () => {
    const { file, image, node } = await faulty();
    file.fail({ on: 'read', always: true });
    const before = (image.inner as MemoryStore).bytes();
    for (const request of [
      () => node.read(0, new Uint8Array(10)),
      () => node.write(0, filled(10, 1)),
      () => node.writeZeroes(0, 4096),
      () => node.discard(0, 4096),
      () => node.extents(0, 4096, new ExtentList()),
    ]) {
      expect((await failureOf(async () => await request())).details.errno).toBe('EIO');
    }
    expect((image.inner as MemoryStore).bytes()).toEqual(before);
    file.heal();
    // Nothing is left locked.
    await node.write(0, filled(10, 1));
    expect(await contentOf(node, 0, 20)).toEqual(filled(20, 0xbb).fill(1, 0, 10));
  });

  it('A-020: of copying or writing data leaves the cluster as it was', async () => {
    const { file, image, node } = await faulty();
    const before = (file.inner as MemoryStore).bytes();
    image.fail({ on: 'write', partial: 700 });
    await failureOf(async () => await node.write(1000, filled(100, 1)));
    expect(await contentOf(node)).toEqual(filled(20 * KiB, 0xbb));
    await node.flush();
    expect((file.inner as MemoryStore).bytes()).toEqual(before);
    await node.write(1000, filled(100, 2));
    expect(await contentOf(node)).toEqual(filled(20 * KiB, 0xbb).fill(2, 1000, 1100));
  });

  it('A-021: of flushing the image file is told, and no bit is written', async () => {
    const { file, image, node } = await faulty();
    const before = (file.inner as MemoryStore).bytes();
    await node.write(0, filled(4096, 1));
    image.fail({ on: 'flush' });
    expect((await failureOf(async () => await node.flush())).details.errno).toBe('EIO');
    expect((file.inner as MemoryStore).bytes()).toEqual(before);
    await node.flush();
    expect((file.inner as MemoryStore).bytes()[4096]).toBe(1);
  });

  it('A-024: of writing bits is told, and they are written by the next flush', async () => {
    const { file, node } = await faulty(V9);
    await node.write(0, filled(4096, 1));
    file.fail({ on: 'write', errno: 'ENOSPC' });
    expect((await failureOf(async () => await node.flush())).code).toBe('NO_SPACE');
    await node.flush();
    expect((file.inner as MemoryStore).bytes()[2560]).toBe(1);
  });
});

describe('R8: a table that several requests want at once', () => {
  it('is read once', async () => {
    const { file, node } = await openHeld(20 * KiB);
    file.log.length = 0;
    file.hold.add('read');
    const requests = [
      node.write(0, filled(10, 1)),
      node.read(9000, new Uint8Array(10)),
      node.write(5000, filled(10, 2)),
      node.writeZeroes(8192, 4096),
      node.extents(0, 100, new ExtentList()),
    ];
    await turn();
    expect(file.log).toEqual(['read 4096+4096']);
    file.hold.clear();
    await file.drain();
    await Promise.all(requests);
    expect(file.count('read')).toBe(1);
    await node.flush();
    expect(file.bytes[4096]).toBe(0b111);
  });
});

describe('R9: a table that a request uses', () => {
  it('stays in memory across its I/O, however many others come and go', async () => {
    const size = 30 * GiB;
    const { file, image } = await createAddCowFiles(size, {}, true);
    const late = new LateStore({ seed: 1, mode: 'step', pieceSize: 0 }, image);
    const node = await openAddCow(file, late, { backing: backingOf(0), cache: new CacheBudget(0) });
    // Four tables at most are in memory; each covers 2 GiB.
    const held = node.write(4096, filled(4096, 1)) as Promise<void>;
    await turn();
    expect(late.running).toBe(1);
    for (let round = 0; round < 2; round++) {
      for (let at = 2 * GiB; at < size; at += 2 * GiB) await contentOf(node, at, 1);
    }
    // The same table is changed by somebody else, and written back.
    const other = node.write(3 * 4096, filled(4096, 2)) as Promise<void>;
    await turn();
    const flushing = node.flush();
    await late.drain();
    await Promise.all([held, other, flushing]);
    const last = node.flush();
    await late.drain();
    await last;
    const bitmap = new Uint8Array(1);
    void file.read(4096, bitmap);
    expect(bitmap[0]).toBe(0b1010);
  });
});

describe('R13: the bitmap', () => {
  it('goes through the cache that all formats share', async () => {
    const { file, node } = await openHeld(20 * KiB);
    await node.write(0, filled(10, 1));
    await node.flush();
    expect(file.events.filter((event) => event.startsWith('bitmap'))).toEqual(['bitmap_load', 'bitmap_update']);
  });

  it('A-024: only what changed of it is written', async () => {
    const { file, node } = await openHeld(20 * KiB, V9);
    await node.write(0, filled(10, 1));
    file.log.length = 0;
    await node.flush();
    expect(file.log).toEqual(['write 2560+1', 'flush 0+0']);
  });
});

describe('an image with everything allocated', () => {
  it('never asks for its backing file, nor for its bitmap', async () => {
    const { file, image } = await createAddCowFiles(20 * KiB, {}, true);
    await file.write(32, Uint8Array.of(1));
    const recording = new RecordingStore(file, { reads: true });
    // There is none to be opened.
    const node = await openAddCow(recording, image);
    recording.log.clear();
    expect(await contentOf(node)).toEqual(filled(20 * KiB, STALE));
    await node.write(5000, filled(10, 1));
    await node.writeZeroes(8000, 3);
    await node.flush();
    expect(recording.entries).toEqual([]);
    expect(await contentOf(node, 4999, 12)).toEqual(filled(12, 1).fill(STALE, 0, 1).fill(STALE, 11));
    expect(await contentOf(node, 7999, 5)).toEqual(Uint8Array.of(STALE, 0, 0, 0, STALE));
    expect(node.children.map(({ name }) => name)).toEqual(['file', 'image-file']);
  });

  it('cannot be emptied', async () => {
    const { file, image } = await createAddCowFiles(20 * KiB, {}, false);
    const node = await openAddCow(file, image);
    expect(await failureOf(() => node.makeEmpty())).toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'add-cow.empty-all-allocated',
    });
  });
});

describe('A-001: detaching', () => {
  it('is refused as long as something is missing, and says how much', async () => {
    const { file, image } = await createAddCowFiles(18 * KiB, {}, true);
    const node = await openAddCow(file, image, { backing: backingOf(18 * KiB) });
    await node.write(4096, filled(4096, 1));
    await node.write(16 * KiB, filled(10, 1));
    const before = file.bytes();
    const failure = await failureOf(() => node.detach());
    expect(failure).toMatchObject({
      code: 'INVALID_ARGUMENT',
      reason: 'add-cow.not-all',
      details: { missing: 12 * KiB, size: 18 * KiB },
    });
    expect(failure.message).toContain('12288 bytes are not in the image file "image"');
    expect(file.bytes().subarray(0, 4096)).toEqual(before.subarray(0, 4096));
  });

  for (const variant of [V9, {}]) {
    it(`makes the image file the whole disk: ${variant.compat ?? 'v20'}`, async () => {
      const size = 3 * unitOf(variant) + 512;
      const { file, image } = await createAddCowFiles(size, variant, true);
      const node = await openAddCow(file, image, { backing: backingOf(size) });
      await node.write(0, pattern(size));
      expect(await node.detach()).toEqual({ name: 'image', format: 'raw' });
      expect(image.bytes()).toEqual(pattern(size));
      expect((await node.format.info()).specific?.data['all-allocated']).toBe(variant.compat !== 'v9');
      // It goes on as a disk.
      await node.write(10, filled(10, 1));
      await node.truncate(size + 1024);
      expect(await contentOf(node, size, 1024)).toEqual(new Uint8Array(1024));
      expect(await node.detach()).toEqual({ name: 'image', format: 'raw' });
      await node.close();
      expect(image.bytes().subarray(0, size)).toEqual(pattern(size).fill(1, 10, 20));
    });
  }
});

describe('emptying', () => {
  for (const variant of [V9, {}]) {
    it(`shows the backing file again, and what was there is never seen again: ${variant.compat ?? 'v20'}`, async () => {
      const unit = unitOf(variant);
      const size = 3 * unit + 512;
      const { file, image } = await createAddCowFiles(size, variant, true);
      const node = await openAddCow(file, image, { backing: backingOf(size) });
      await node.write(0, pattern(size));
      await node.flush();
      await node.write(0, pattern(5));
      await node.makeEmpty();
      expect(await contentOf(node)).toEqual(filled(size, 0xbb));
      await node.write(unit + 5, filled(10, 1));
      const wanted = filled(size, 0xbb).fill(1, unit + 5, unit + 15);
      expect(await contentOf(node)).toEqual(wanted);
      await node.close();
      const again = await openAddCow(file.reopen(), image.reopen(), { readOnly: true, backing: backingOf(size) });
      expect(await contentOf(again)).toEqual(wanted);
    });
  }
});

describe('check', () => {
  it('finds bits past the end of the disk, and clears them', async () => {
    const { file, image } = await createAddCowFiles(9 * 4096, {}, true);
    await file.write(4096, Uint8Array.of(3, 0xff, 0, 1));
    const found = await checkAddCow(file, image);
    expect(found).toMatchObject({ leaks: 8, corruptions: 0, checkErrors: 0, allocatedClusters: 3, totalClusters: 9 });
    expect(found.lines).toEqual([
      'Leaked bits: 8 clusters past the end of the disk, 36864 bytes, are marked as allocated',
    ]);
    for (const fix of ['leaks', 'all'] as const) {
      const copy = MemoryStore.from(file.bytes());
      const result = await checkAddCow(copy, image.reopen(), fix);
      expect(result).toMatchObject({ leaks: 0, leaksFixed: 8 });
      expect(copy.bytes().subarray(4096, 4100)).toEqual(Uint8Array.of(3, 1, 0, 0));
    }
  });

  it('notes a file that ends before its bitmap does, and makes it longer', async () => {
    const { file, image } = await createAddCowFiles(9 * 4096, {}, true);
    await file.truncate(4097);
    const found = await checkAddCow(file, image);
    expect(found).toMatchObject({ leaks: 0, corruptions: 0, checkErrors: 0 });
    expect(found.lines).toEqual([
      'The file has 4097 bytes and ends before its bitmap does, at 8192; what is missing reads as zero',
    ]);
    const copy = MemoryStore.from(file.bytes());
    await checkAddCow(copy, image.reopen(), 'all');
    expect(copy.size).toBe(8192);
  });

  it('counts what is written already, and brings back no bit that it has cleared', async () => {
    const { file, image } = await createAddCowFiles(9 * 4096, {}, true);
    await file.write(4097, Uint8Array.of(0x80));
    const node = await openAddCow(file, image, { backing: backingOf(MiB) });
    await node.write(0, filled(4096, 1));
    await node.write(8 * 4096, filled(10, 1));
    expect(await node.format.check?.check({ fix: 'all' })).toMatchObject({ allocatedClusters: 2, leaksFixed: 1 });
    await node.write(4096, filled(10, 1));
    await node.close();
    expect(file.bytes().subarray(4096, 4098)).toEqual(Uint8Array.of(3, 1));
  });

  it('has nothing to say of a bitmap that does not count', async () => {
    const { file, image } = await createAddCowFiles(9 * 4096, {}, false);
    await file.write(4096, filled(4096, 0xff));
    expect(await checkAddCow(file, image)).toMatchObject({ leaks: 0, allocatedClusters: 9, lines: [] });
  });
});
