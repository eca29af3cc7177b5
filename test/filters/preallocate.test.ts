import { describe, expect, it } from 'vitest';
import { settleAll } from '../../src/base/async.ts';
import type { ImageEvent } from '../../src/core/format.ts';
import { preallocate } from '../../src/filters/preallocate.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { RecordingStore } from '../../src/testing/recording-store.ts';
import { everySeed } from '../support/seeds.ts';
import { bytesOf, expectSame, failureOf, filled, openFilter, statusText } from './support.ts';

const MiB = 1024 * 1024;

function memory(size: number): MemoryStore {
  return new MemoryStore({ size, pageSize: 4096 });
}

describe('preallocate', () => {
  it('refuses an alignment that is none', async () => {
    const file = memory(MiB);
    expect(await failureOf(() => openFilter(preallocate, { file }, { preallocAlign: 1000 }))).toMatchObject({
      reason: 'preallocate.align',
    });
    const coarse = new MemoryStore({ requestAlign: 4096 });
    expect(await failureOf(() => openFilter(preallocate, { file: coarse }, { preallocAlign: 512 }))).toMatchObject({
      reason: 'preallocate.align-below',
      details: { align: 512, requestAlign: 4096 },
    });
    await openFilter(preallocate, { file: coarse }, { preallocAlign: 0 });
  });

  it('makes the file longer than what is written, and shows what is written only', async () => {
    const file = memory(MiB);
    const node = await openFilter(preallocate, { file }, { preallocSize: 4 * MiB });
    await node.write(0, filled(1, 100));
    expect([node.size, file.size]).toEqual([MiB, MiB]);
    await node.write(MiB, filled(2, 100));
    expect([node.size, file.size]).toEqual([MiB + 100, 6 * MiB]);
    // There is room: the file stays as it is.
    await node.write(2 * MiB, filled(3, 100));
    expect([node.size, file.size]).toEqual([2 * MiB + 100, 6 * MiB]);
    expect(await statusText(node, 0, 3 * MiB)).toMatch(/zero \d+\+\d+$/);
    await node.close();
    expect([file.size, file.closed]).toEqual([2 * MiB + 100, false]);
    expect(file.bytes().subarray(2 * MiB)).toEqual(filled(3, 100));
  });

  it('preallocates 128 MiB to a whole MiB where nothing else is asked for', async () => {
    const file = memory(0);
    const node = await openFilter(preallocate, { file });
    await node.write(0, filled(1, 1));
    expect(file.size).toBe(129 * MiB);
  });

  it('writes no zeros where there are zeros already', async () => {
    const file = memory(0);
    const recorded = new RecordingStore(file);
    const node = await openFilter(preallocate, { file: recorded }, { preallocSize: 4 * MiB });
    await node.writeZeroes(0, MiB);
    const before = recorded.log.entries.length;
    await node.writeZeroes(MiB, MiB);
    expect(recorded.log.entries.slice(before)).toEqual([]);
    expect(node.size).toBe(2 * MiB);
    // But where data was written in between, they are needed.
    await node.write(MiB + MiB / 2, filled(7, 4096));
    await node.writeZeroes(MiB, 2 * MiB);
    expectSame(await bytesOf(node), new Uint8Array(3 * MiB));
  });

  it('gives up what it has when the size is set', async () => {
    const file = memory(0);
    const node = await openFilter(preallocate, { file }, { preallocSize: 4 * MiB });
    await node.write(0, filled(1, MiB));
    await node.truncate(2 * MiB, { preallocation: 'falloc' });
    expect([node.size, file.size]).toEqual([2 * MiB, 5 * MiB]);
    await node.truncate(3 * MiB);
    expect([node.size, file.size]).toEqual([3 * MiB, 3 * MiB]);
    await node.write(3 * MiB, filled(1, 1));
    await node.truncate(MiB);
    expect([node.size, file.size]).toEqual([MiB, MiB]);
    await node.close();
    expectSame(file.bytes(), filled(1, MiB));
  });

  it('lets a write succeed that it could not make room for, and says so once', async () => {
    const file = memory(0);
    const faulty = new FaultStore(file);
    faulty.fail({ on: 'zeroes', always: true, errno: 'ENOSPC' });
    const events: ImageEvent[] = [];
    const node = await openFilter(preallocate, { file: faulty }, {}, { events });
    await node.write(0, filled(1, 4096));
    await node.write(4096, filled(2, 4096));
    expect(events).toMatchObject([{ type: 'warning', reason: 'preallocate.failed' }]);
    expect([node.size, file.size]).toEqual([8192, 8192]);
  });

  it('leaves a file alone that is only read', async () => {
    const file = new MemoryStore({ size: MiB, readOnly: true });
    const node = await openFilter(preallocate, { file }, {}, { readOnly: true });
    expect(node.size).toBe(MiB);
    await node.close();
  });

  it('cuts nothing off, however late the file is and whatever fails', async () => {
    await everySeed(20, async (seed) => {
      const random = seededRandom(seed);
      const file = memory(0);
      const faulty = new FaultStore(new LateStore({ seed }, file));
      if (seed % 3 === 0) faulty.fail({ on: 'truncate', nth: 1 + below(random, 2), errno: 'ENOSPC' });
      const node = await openFilter(preallocate, { file: faulty }, { preallocAlign: 4096, preallocSize: 20_000 });
      const model = new Uint8Array(400_000);
      let end = 0;
      for (let round = 0; round < 6; round++) {
        const pendings: (Promise<void> | undefined)[] = [];
        // Places of their own, so that the order does not matter.
        const places = Array.from({ length: 10 }, (_, i) => i).sort(() => random() - 0.5);
        for (const place of places) {
          const offset = round * 60_000 + place * 6000 + below(random, 1000);
          const length = 1 + below(random, 5000);
          if (below(random, 3) === 0) pendings.push(node.writeZeroes(offset, length));
          else {
            const data = noise(random, length);
            model.set(data, offset);
            pendings.push(node.write(offset, data));
          }
          end = Math.max(end, offset + length);
        }
        await settleAll(pendings);
        expect(node.size).toBe(end);
      }
      expectSame(await bytesOf(node), model.slice(0, end));
      await node.close();
      expectSame(file.bytes(), model.slice(0, end));
    });
  });
});
