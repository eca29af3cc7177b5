import { describe, expect, it } from 'vitest';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { noise, seededRandom } from '../../src/testing/random.ts';
import { crashImage, durableEntries, RecordingStore, replay, WriteLog } from '../../src/testing/recording-store.ts';

const kinds = (store: RecordingStore): string[] =>
  store.entries.map(({ kind, offset, length }) => `${kind} ${offset}+${length}`);

describe('RecordingStore', () => {
  it('logs every change and flush in order, and passes everything on', async () => {
    const memory = new MemoryStore();
    const store = new RecordingStore(memory);
    await store.truncate(4096);
    await store.write(0, Uint8Array.of(1, 2), { fua: true });
    await store.writev?.(100, [Uint8Array.of(3), Uint8Array.of(4, 5)]);
    await store.flush();
    await store.writeZeroes(0, 1, { unmap: true });
    await store.discard(512, 512);
    await store.read(0, new Uint8Array(10));
    expect(kinds(store)).toEqual([
      'truncate 4096+0',
      'write 0+2',
      'write 100+3',
      'flush 0+0',
      'zeroes 0+1',
      'discard 512+512',
    ]);
    expect(store.entries.map(({ fua, unmap, parts }) => [fua, unmap, parts])).toEqual([
      [false, false, 0],
      [true, false, 1],
      [false, false, 2],
      [false, false, 0],
      [false, true, 0],
      [false, false, 0],
    ]);
    expect([...(store.entries[2]?.data ?? [])]).toEqual([3, 4, 5]);
    expect([...memory.bytes().subarray(98, 104)]).toEqual([0, 0, 3, 4, 5, 0]);
  });

  it('copies data when the request begins', async () => {
    const store = new RecordingStore(new MemoryStore());
    const bytes = Uint8Array.of(1);
    await store.write(0, bytes);
    bytes[0] = 9;
    expect([...(store.entries[0]?.data ?? [])]).toEqual([1]);
  });

  it('logs reads when asked', async () => {
    const store = new RecordingStore(new MemoryStore(), { reads: true });
    await store.read(5, new Uint8Array(7));
    expect(kinds(store)).toEqual(['read 5+7']);
  });

  it('marks failed requests, thrown or rejected', async () => {
    const store = new RecordingStore(new FaultStore(new MemoryStore(), [{ nth: 1 }, { nth: 1, late: true }]));
    expect(() => store.write(0, Uint8Array.of(1))).toThrow();
    await expect(store.write(1, Uint8Array.of(1))).rejects.toThrow();
    await store.write(2, Uint8Array.of(1));
    expect(store.entries.map((entry) => entry.failed)).toEqual([true, true, false]);
  });

  it('keeps one order over several stores that share a log', async () => {
    const log = new WriteLog();
    const [data, bits] = [
      new RecordingStore(new MemoryStore(), { log }),
      new RecordingStore(new MemoryStore(), { log }),
    ];
    await data.write(0, Uint8Array.of(1));
    await bits.write(0, Uint8Array.of(2));
    await data.flush();
    expect(log.entries.map((entry) => [entry.kind, entry.store === data])).toEqual([
      ['write', true],
      ['write', false],
      ['flush', true],
    ]);
    // a flush of one file says nothing about the other
    expect([...durableEntries(log.entries, log.tick)]).toEqual([log.entries[0]]);
    log.clear();
    expect(log.entries).toEqual([]);
  });
});

describe('durableEntries', () => {
  it('are those that had ended before a flush began that has ended', async () => {
    const late = new LateStore({ seed: 1, mode: 'step', pieceSize: 0 });
    const store = new RecordingStore(late);
    const a = store.write(0, Uint8Array.of(1));
    late.step();
    await a;
    const b = store.write(1, Uint8Array.of(2));
    const flush = store.flush();
    expect(durableEntries(store.entries, store.log.tick).size).toBe(0);
    await Promise.all([b, flush, late.drain()]);
    // b was running when the flush began: it may be lost
    expect([...durableEntries(store.entries, store.log.tick)]).toEqual([store.entries[0]]);
    const again = store.flush();
    await Promise.all([again, late.drain()]);
    expect(durableEntries(store.entries, store.log.tick).size).toBe(2);
    // before the end of that flush the crash could still lose b
    expect(durableEntries(store.entries, (store.entries[3]?.ended ?? 0) - 1).size).toBe(1);
  });

  it('hold writes with fua, and none that failed or whose flush failed', async () => {
    const store = new RecordingStore(new FaultStore(new MemoryStore(), [{ on: 'flush' }, { on: 'write', nth: 3 }]));
    await store.write(0, Uint8Array.of(1));
    await store.write(1, Uint8Array.of(2), { fua: true });
    expect(() => store.write(2, Uint8Array.of(2), { fua: true })).toThrow();
    expect(() => store.flush()).toThrow();
    expect([...durableEntries(store.entries, store.log.tick)]).toEqual([store.entries[1]]);
  });
});

describe('replay', () => {
  it('of everything gives what the store holds', async () => {
    const random = seededRandom(3);
    const base = noise(random, 10_000);
    const memory = MemoryStore.from(base, { pageSize: 512 });
    const store = new RecordingStore(memory);
    for (let i = 0; i < 100; i++) {
      const offset = Math.floor(random() * 20_000);
      const length = 1 + Math.floor(random() * 3000);
      const choice = random();
      if (choice < 0.5) await store.write(offset, noise(random, length));
      else if (choice < 0.7) await store.writev?.(offset, [noise(random, length), noise(random, 9)]);
      else if (choice < 0.85) await store.writeZeroes(offset, length);
      else if (choice < 0.9) await store.flush();
      else await store.truncate(offset);
    }
    const bytes = memory.bytes();
    expect(
      Buffer.compare(
        replay(store.entries, base, () => true),
        bytes,
      ),
    ).toBe(0);
    // sectors decided one by one make no difference when all are kept
    expect(
      Buffer.compare(
        replay(store.entries, base, () => () => true),
        bytes,
      ),
    ).toBe(0);
  });

  it('leaves out entries and sectors that are not kept', async () => {
    const store = new RecordingStore(new MemoryStore());
    await store.write(500, new Uint8Array(600).fill(1));
    await store.write(0, Uint8Array.of(2));
    const torn = replay(
      store.entries,
      new Uint8Array(2048),
      (entry) => entry.index === 0 && ((sector) => sector !== 1),
    );
    expect(torn[0]).toBe(0);
    expect([torn[499], torn[500], torn[511], torn[512], torn[1023], torn[1024], torn[1099], torn[1100]]).toEqual([
      0, 1, 1, 0, 0, 1, 1, 0,
    ]);
    expect(torn.length).toBe(2048);
  });

  it('takes a discard as zeros, as nothing or as junk, never past the end', async () => {
    const store = new RecordingStore(MemoryStore.from(new Uint8Array(1024).fill(1)));
    await store.discard(512, 4096);
    const base = new Uint8Array(1024).fill(1);
    expect(replay(store.entries, base, () => true)[600]).toBe(0);
    expect(replay(store.entries, base, () => true, { discard: 'keep' })[600]).toBe(1);
    const junk = replay(store.entries, base, () => true, { discard: 'junk' });
    expect([junk.length, junk[511], junk[512]]).toEqual([1024, 1, 0xdb]);
  });
});

describe('crashImage', () => {
  it('always holds what is durable, sometimes what is not, never what had not begun', async () => {
    const store = new RecordingStore(new MemoryStore());
    await store.write(0, Uint8Array.of(1));
    await store.flush();
    await store.write(1, Uint8Array.of(2));
    const tick = store.log.tick;
    await store.write(2, Uint8Array.of(3));
    const seen = new Set<string>();
    const random = seededRandom(1);
    for (let i = 0; i < 50; i++) seen.add([...crashImage(store.entries, new Uint8Array(3), tick, random)].join());
    expect(seen).toEqual(new Set(['1,0,0', '1,2,0']));
  });

  it('tears writes by sectors when asked', async () => {
    const store = new RecordingStore(new MemoryStore());
    await store.write(0, new Uint8Array(1024).fill(1));
    const seen = new Set<string>();
    const random = seededRandom(1);
    for (let i = 0; i < 100; i++) {
      const image = crashImage(store.entries, new Uint8Array(1024), store.log.tick, random, { tear: true });
      expect(new Set(image.subarray(0, 512)).size).toBe(1);
      seen.add(`${image[0]}${image[512]}`);
    }
    expect(seen).toEqual(new Set(['00', '01', '10', '11']));
  });
});
