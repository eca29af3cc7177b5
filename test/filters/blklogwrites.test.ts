import { describe, expect, it } from 'vitest';
import { settleAll } from '../../src/base/async.ts';
import { blklogwrites } from '../../src/filters/blklogwrites.ts';
import { LOG_FLAGS, replayLog } from '../../src/filters/write-log.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { everySeed } from '../support/seeds.ts';
import { bytesOf, expectSame, failureOf, filled, openFilter } from './support.ts';

const SIZE = 65_536;

function disk(): MemoryStore {
  return new MemoryStore({ size: SIZE, pageSize: 512 });
}

/** What a log does to an empty disk, up to the entry before `stop`. */
async function replayed(log: MemoryStore, size = SIZE, stop = Number.POSITIVE_INFINITY): Promise<Uint8Array> {
  const bytes = new Uint8Array(size);
  let count = 0;
  for await (const { offset, length, flags, dataAt } of replayLog('test', log)) {
    if (count++ >= stop) break;
    if ((flags & LOG_FLAGS.discard) !== 0n) bytes.fill(0, offset, offset + length);
    else if (dataAt !== undefined) bytes.set((await bytesOf(log, dataAt, length)).subarray(0, size - offset), offset);
  }
  return bytes;
}

async function entries(log: MemoryStore): Promise<string[]> {
  const lines: string[] = [];
  for await (const { offset, length, flags } of replayLog('test', log)) lines.push(`${offset}+${length} ${flags}`);
  return lines;
}

/** The 64-bit numbers at a place of the log. */
function numbers(log: MemoryStore, at: number, count: number): bigint[] {
  const view = new DataView(log.bytes().buffer);
  return Array.from({ length: count }, (_, i) => view.getBigUint64(at + i * 8, true));
}

describe('blklogwrites', () => {
  it('writes the format of dm-log-writes', async () => {
    const [file, log] = [disk(), new MemoryStore()];
    const node = await openFilter(blklogwrites, { file, log });
    await node.write(1024, filled(4, 1024));
    await node.writeZeroes(4096, 2048);
    await node.discard(8192, 512);
    expect(log.size).toBe(512 + 512 + 1024 + 512 + 2048 + 512);
    await node.flush();
    // Superblock: magic, version, entries, sector size.
    expect(numbers(log, 0, 3)).toEqual([0x6a736677736872n, 1n, 4n]);
    expect(new DataView(log.bytes().buffer).getUint32(24, true)).toBe(512);
    expect(numbers(log, 512, 4)).toEqual([2n, 2n, 0n, 0n]);
    expect(log.bytes().subarray(1024, 2048)).toEqual(filled(4, 1024));
    expect(numbers(log, 2048, 4)).toEqual([8n, 4n, 0n, 0n]);
    expect(numbers(log, 4608, 4)).toEqual([16n, 1n, 4n, 0n]);
    expect(numbers(log, 5120, 4)).toEqual([0n, 0n, 1n, 0n]);
    expect(log.size).toBe(5632);
  });

  it('adds no flush where nothing was written since the last one, and one for each durable write', async () => {
    const [file, log] = [disk(), new MemoryStore()];
    const node = await openFilter(blklogwrites, { file, log });
    await node.flush();
    expect(log.size).toBe(0);
    await node.write(0, filled(1, 512), { fua: true });
    await node.flush();
    await node.close();
    expect(await entries(log)).toEqual(['0+512 0', '0+0 1']);
  });

  it('logs whole sectors, with what the disk holds around a write', async () => {
    const file = MemoryStore.from(filled(9, 10_000), { pageSize: 512 });
    const log = new MemoryStore();
    const node = await openFilter(blklogwrites, { file, log }, { logSectorSize: 4096 });
    await node.write(4090, filled(1, 10));
    await node.writeZeroes(9000, 2000);
    await node.flush();
    expect(file.size).toBe(11_000);
    expect(await entries(log)).toEqual(['0+8192 0', '8192+4096 0', '0+0 1']);
    expectSame(await bytesOf(log, 8192, 8192), file.bytes().slice(0, 8192));
    const last = new Uint8Array(4096);
    last.set(file.bytes().subarray(8192));
    expect(await bytesOf(log, 20_480, 4096)).toEqual(last);
  });

  it('goes on with a log that is there, and with an empty file', async () => {
    const [file, log] = [disk(), new MemoryStore()];
    for (const byte of [1, 2, 3]) {
      const options = byte === 1 ? { logSectorSize: 1024 } : { logAppend: true };
      const node = await openFilter(blklogwrites, { file, log }, options);
      await node.write(byte * 2048, filled(byte, 1024));
      await node.discard(byte * 4096, 1024);
      await node.close();
    }
    expect(await entries(log)).toHaveLength(9);
    expectSame(await replayed(log), file.bytes());
    const fresh = new MemoryStore();
    const node = await openFilter(blklogwrites, { file, log: fresh }, { logAppend: true });
    await node.write(0, filled(1, 100));
    await node.close();
    expect(await entries(fresh)).toEqual(['0+512 0', '0+0 1']);
  });

  it('updates the superblock every so many entries', async () => {
    const [file, log] = [disk(), new MemoryStore()];
    const node = await openFilter(blklogwrites, { file, log }, { logSuperUpdateInterval: 3 });
    for (let i = 0; i < 5; i++) await node.write(i * 512, filled(i, 512));
    expect(await entries(log)).toHaveLength(3);
  });

  const refusals: readonly (readonly [reason: string, options: Readonly<Record<string, unknown>>])[] = [
    ['blklogwrites.sector', { logSectorSize: 513 }],
    ['blklogwrites.sector', { logSectorSize: 0 }],
    ['blklogwrites.sector', { logSectorSize: 16 }],
    ['blklogwrites.sector', { logSectorSize: 2 ** 24 }],
    ['blklogwrites.interval', { logSuperUpdateInterval: 0 }],
    ['blklogwrites.append-sector', { logAppend: true, logSectorSize: 512 }],
  ];
  for (const [reason, options] of refusals) {
    it(`refuses ${JSON.stringify(options)}: ${reason}`, async () => {
      const children = { file: disk(), log: new MemoryStore() };
      expect(await failureOf(() => openFilter(blklogwrites, children, options))).toMatchObject({ reason });
    });
  }

  it('refuses to go on with what is no log', async () => {
    const children = { file: disk(), log: new MemoryStore() };
    const node = await openFilter(blklogwrites, children);
    await node.write(0, filled(1, 512));
    await node.close();
    const good = children.log.bytes();
    const damaged = (at: number, ...bytes: readonly number[]): MemoryStore => {
      const copy = good.slice();
      copy.set(bytes, at);
      return MemoryStore.from(copy);
    };
    const cases: readonly (readonly [reason: string, log: MemoryStore])[] = [
      ['blklogwrites.magic', damaged(0, 0)],
      ['blklogwrites.magic', MemoryStore.from(filled(1, 3))],
      ['blklogwrites.version', damaged(8, 2)],
      ['blklogwrites.version', damaged(15, 0xff)],
      ['blklogwrites.sector', damaged(24, 1)],
      ['blklogwrites.flags', damaged(512 + 16, 16)],
      // More entries than there are, up to more than there can be.
      ['blklogwrites.entry', damaged(16, 200)],
      ['blklogwrites.entry', damaged(16, 255, 255, 255, 255, 255, 255, 255, 255)],
      ['blklogwrites.entry', damaged(512, 255, 255, 255, 255, 255, 255, 255, 255)],
      ['blklogwrites.entry', damaged(512 + 8, 255, 255, 255, 255, 255, 255, 255, 255)],
    ];
    for (const [reason, log] of cases) {
      const found = failureOf(() => openFilter(blklogwrites, { file: disk(), log }, { logAppend: true }));
      expect(await found).toMatchObject({ reason });
    }
  });

  it('fails a write that cannot be logged, and logs the next one in its place', async () => {
    const [file, log] = [disk(), new MemoryStore()];
    const faulty = new FaultStore(log);
    const node = await openFilter(blklogwrites, { file, log: faulty });
    await node.write(0, filled(1, 512));
    faulty.fail({ on: 'write', errno: 'ENOSPC', partial: 600 });
    expect(await failureOf(() => node.write(512, filled(2, 1024)))).toMatchObject({ code: 'NO_SPACE' });
    await node.write(512, filled(3, 1024));
    await node.close();
    expect(await entries(log)).toEqual(['0+512 0', '512+1024 0', '0+0 1']);
    expectSame(await replayed(log), file.bytes());
  });

  it('gives the disk when it is replayed, however late disk and log are', async () => {
    await everySeed(20, async (seed) => {
      const random = seededRandom(seed);
      const [file, log] = [disk(), new MemoryStore({ pageSize: 512 })];
      const sector = [512, 1024, 4096][seed % 3];
      const node = await openFilter(
        blklogwrites,
        { file: new LateStore({ seed }, file), log: new LateStore({ seed: seed + 1 }, log) },
        { logSectorSize: sector },
      );
      const pendings: (Promise<void> | undefined)[] = [];
      for (let i = 0; i < 60; i++) {
        const offset = below(random, SIZE - 9000);
        const length = 1 + below(random, 9000);
        const kind = below(random, 8);
        if (kind === 0) pendings.push(node.writeZeroes(offset, length));
        else if (kind === 1) pendings.push(node.discard(offset, length));
        else if (kind === 2) pendings.push(node.flush());
        else pendings.push(node.write(offset, noise(random, length), kind === 3 ? { fua: true } : {}));
      }
      await settleAll(pendings);
      await node.close();
      await settleAll([node.close()]);
      expectSame(await replayed(log), file.bytes());
    });
  });
});
