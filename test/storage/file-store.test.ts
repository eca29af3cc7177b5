import { execFileSync } from 'node:child_process';
import { closeSync, constants, fstatSync, mkdirSync, openSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { ExtentList } from '../../src/core/extent.ts';
import { type Native, NOT_AVAILABLE, native, withoutNative } from '../../src/platform/node/native.ts';
import { FileStore } from '../../src/storage/file-store.ts';
import { noise, seededRandom } from '../../src/testing/random.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const random = seededRandom(1);
const none = withoutNative('for the test');
/** Whether the scratch directory can punch holes: tests of space need it. */
const punches = ((): boolean => {
  const fd = openSync(path('probe'), 'w+');
  try {
    writeFileSync(fd, new Uint8Array(8192));
    return native().punchHole(fd, 0, 4096) === 'done' && native().seekData(fd, 0) === 4096;
  } finally {
    closeSync(fd);
  }
})();

/** A file system of 1 MiB, where one can be mounted: the honest way to run out of space. It is taken off its place at once
 *  and lives by its open directory alone, so that a run that is killed leaves no mount behind. */
function smallDisk(): number | undefined {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return undefined;
  mkdirSync(path('small'));
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'cowdisk-test', path('small')], { stdio: 'ignore' });
  } catch {
    return undefined;
  }
  try {
    return openSync(path('small'), 'r');
  } finally {
    execFileSync('umount', ['--lazy', path('small')]);
  }
}
const small = smallDisk();
afterAll(() => {
  if (small !== undefined) closeSync(small);
});

function openStore(name: string, calls?: Native, content?: Uint8Array): FileStore {
  if (content !== undefined) writeFileSync(path(name), content);
  return storeAt(path(name), name, calls);
}

function storeAt(file: string, name: string, calls?: Native): FileStore {
  const fd = openSync(file, constants.O_RDWR + constants.O_CREAT, 0o600);
  return new FileStore(fd, { name, readOnly: false, ...(calls === undefined ? {} : { native: () => calls }) });
}

async function describeExtents(store: FileStore, offset: number, length: number): Promise<string> {
  const list = new ExtentList();
  list.reset(offset);
  await store.extents(offset, length, list);
  return [...list].map((at) => `${at.data ? 'data' : 'hole'} ${at.start}+${at.length}@${at.hostOffset}`).join(', ');
}

/** The real calls with some replaced. */
function changed(change: Partial<Native>): Native {
  const real = native();
  return {
    available: true,
    missing: undefined,
    seekData: (fd, offset) => real.seekData(fd, offset),
    seekHole: (fd, offset) => real.seekHole(fd, offset),
    deviceSize: (fd) => real.deviceSize(fd),
    deviceSectorSize: (fd) => real.deviceSectorSize(fd),
    lockByte: (fd, at, locked) => real.lockByte(fd, at, locked),
    byteIsLocked: (fd, at) => real.byteIsLocked(fd, at),
    punchHole: (fd, offset, length) => real.punchHole(fd, offset, length),
    zeroRange: (fd, offset, length) => real.zeroRange(fd, offset, length),
    allocate: (fd, offset, length) => real.allocate(fd, offset, length),
    discardDevice: (fd, offset, length) => real.discardDevice(fd, offset, length),
    zeroDevice: (fd, offset, length) => real.zeroDevice(fd, offset, length),
    later: real.later,
    ...change,
  };
}

describe('FileStore', () => {
  it('loads the native calls only when a request needs them', async () => {
    let loads = 0;
    const fd = openSync(path('lazy'), 'w+');
    const store = new FileStore(fd, {
      name: 'lazy',
      readOnly: false,
      native: () => {
        loads++;
        return native();
      },
    });
    await store.write(0, noise(random, 5000));
    await store.read(0, new Uint8Array(100));
    await store.truncate(100_000);
    await store.writeZeroes(100_000, 5000);
    await store.flush();
    expect(loads).toBe(0);
    await store.writeZeroes(0, 100);
    await store.discard(0, 100);
    expect(loads).toBe(1);
    await store.close();
  });

  it('answers short requests at once, long ones and every flush by a promise', async () => {
    const store = openStore('sync');
    const bytes = new Uint8Array(512 * 1024 + 1);
    expect(store.write(0, bytes.subarray(1))).toBeUndefined();
    expect(store.read(0, bytes.subarray(1))).toBeUndefined();
    expect(store.writev(0, [bytes.subarray(0, 5), bytes.subarray(5, 9)])).toBeUndefined();
    const pendings = [
      store.write(0, bytes),
      store.read(0, bytes),
      store.flush(),
      store.write(0, bytes.subarray(9), { fua: true }),
    ];
    for (const pending of pendings) expect(pending).toBeInstanceOf(Promise);
    await Promise.all(pendings);
    await store.close();
  });

  it('follows the size through writes of every kind', async () => {
    const store = openStore('size');
    await store.write(100, Uint8Array.of(1));
    expect(store.size).toBe(101);
    await store.writev(200, [Uint8Array.of(1), Uint8Array.of(2)]);
    expect(store.size).toBe(202);
    await store.write(1000, new Uint8Array(600_000));
    expect(store.size).toBe(601_000);
    await store.writeZeroes(700_000, 50);
    expect(store.size).toBe(700_050);
    expect(statSync(path('size')).size).toBe(700_050);
    await store.close();
  });

  it('does not cut off a running write when it grows by zeroes', async () => {
    const store = openStore('race');
    for (let round = 0; round < 20; round++) {
      await store.truncate(0);
      const data = noise(random, 600_000);
      const writes = [store.write(4_000_000, data), store.write(2_000_000, data)];
      // give the pool time to be anywhere in its work when the file grows
      for (let turn = 0; turn < round % 5; turn++) await new Promise(setImmediate);
      await store.writeZeroes(1000, 1000);
      await Promise.all(writes);
      expect(store.size).toBe(4_600_000);
      const got = readFileSync(path('race'));
      expect(got.length).toBe(4_600_000);
      expect(Buffer.compare(got.subarray(4_000_000), data)).toBe(0);
      expect(Buffer.compare(got.subarray(2_000_000, 2_600_000), data)).toBe(0);
    }
    await store.close();
  });

  it('tells all as data without native calls, and zeros past the end', async () => {
    const store = openStore('all-data', none);
    await store.truncate(100_000);
    expect(store.supports).toMatchObject({ extents: false, discard: false, writeZeroes: 'emulated' });
    expect(await describeExtents(store, 10, 100_000)).toBe('data 10+99990@10, hole 100000+10@undefined');
    await store.discard(0, 4096);
    await store.close();
  });

  it.runIf(punches)('tells holes from data, with where they lie', async () => {
    const store = openStore('holes');
    await store.truncate(10 * 65_536);
    await store.write(2 * 65_536, noise(random, 65_536));
    await store.write(5 * 65_536, noise(random, 65_536));
    expect(store.supports.extents).toBe(true);
    expect(await describeExtents(store, 0, store.size)).toBe(
      'hole 0+131072@0, data 131072+65536@131072, hole 196608+131072@196608, data 327680+65536@327680, hole 393216+262144@393216',
    );
    // inside a hole, inside data, one byte
    expect(await describeExtents(store, 100, 1)).toBe('hole 100+1@100');
    expect(await describeExtents(store, 131_172, 65_536)).toBe('data 131172+65436@131172, hole 196608+100@196608');
    await store.close();
  });

  it.runIf(punches)('gives space back on discard and on zeroes that may unmap, and keeps it otherwise', async () => {
    const store = openStore('space', undefined, noise(random, 1_048_576));
    await store.discard(0, 262_144);
    const blocks = (): number => statSync(path('space')).blocks;
    expect(blocks()).toBe(1536);
    await store.writeZeroes(262_144, 262_144, { unmap: true });
    expect(blocks()).toBe(1024);
    await store.writeZeroes(524_288, 262_144);
    expect(blocks()).toBe(1024);
    expect(
      readFileSync(path('space'))
        .subarray(0, 786_432)
        .every((byte) => byte === 0),
    ).toBe(true);
    expect(await store.status()).toMatchObject({ allocatedBytes: 524_288 });
    await store.close();
  });

  it.runIf(punches)('punches and zeroes long ranges in the pool', async () => {
    const store = openStore('long-range');
    await store.truncate(64 * 1024 * 1024, { preallocation: 'falloc' });
    await store.write(40_000_000, noise(random, 600_000));
    const zeroes = store.writeZeroes(0, 50_000_000, { fua: true });
    expect(zeroes).toBeInstanceOf(Promise);
    await zeroes;
    const discard = store.discard(0, 50_000_000);
    expect(discard).toBeInstanceOf(Promise);
    await discard;
    expect(readFileSync(path('long-range')).every((byte) => byte === 0)).toBe(true);
    await store.close();
  });

  it('writes zeros where the file system can do nothing better, and does not ask it again', async () => {
    let asked = 0;
    const refuse = (): typeof NOT_AVAILABLE => {
      asked++;
      return NOT_AVAILABLE;
    };
    const calls = changed({ punchHole: refuse, zeroRange: refuse, allocate: refuse });
    const store = openStore('emulated', calls, new Uint8Array(40_000).fill(1));
    await store.writeZeroes(0, 10_000);
    expect(asked).toBe(2);
    await store.writeZeroes(10_000, 10_000, { unmap: true });
    await store.writeZeroes(20_000, 30_000);
    await store.discard(0, 100);
    expect(asked).toBe(3);
    expect(store.size).toBe(50_000);
    expect(store.supports).toMatchObject({ writeZeroes: 'emulated', discard: false });
    expect(readFileSync(path('emulated')).every((byte) => byte === 0)).toBe(true);
    expect(() => store.writeZeroes(0, 10, { fastOnly: true })).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED', reason: 'store.zeroes-slow' }),
    );
    await store.close();
  });

  it('has written every zero when a long emulated request ends', async () => {
    const store = openStore('emulated-long', none, new Uint8Array(9_000_000).fill(1));
    await store.writeZeroes(0, 9_100_000);
    expect(store.size).toBe(9_100_000);
    expect(readFileSync(path('emulated-long')).equals(Buffer.alloc(9_100_000))).toBe(true);
    await store.close();
  });

  it.runIf(punches)('punches and allocates again where there is no zero range but space must be kept', async () => {
    const store = openStore('again', changed({ zeroRange: () => NOT_AVAILABLE }), new Uint8Array(65_536).fill(1));
    await store.writeZeroes(0, 65_536, { fastOnly: true });
    expect(statSync(path('again')).blocks).toBe(128);
    expect(readFileSync(path('again')).every((byte) => byte === 0)).toBe(true);
    await store.close();
  });

  it('surfaces the errno of a native call that fails, and changes nothing', async () => {
    const full = (): never => {
      throw Object.assign(new Error('ENOSPC: fallocate'), { code: 'ENOSPC' });
    };
    const calls = changed({ zeroRange: full, punchHole: full });
    const store = openStore('full', calls, new Uint8Array(8192).fill(1));
    const noSpace = expect.objectContaining({
      code: 'NO_SPACE',
      details: expect.objectContaining({ errno: 'ENOSPC', name: 'full', offset: 0, length: 4096 }) as unknown,
    });
    expect(() => store.writeZeroes(0, 4096)).toThrow(noSpace);
    expect(() => store.discard(0, 4096)).toThrow(noSpace);
    expect(readFileSync(path('full')).every((byte) => byte === 1)).toBe(true);
    await store.close();
  });

  it('preallocates with falloc and full, and reads zeros there', async () => {
    for (const [name, calls] of [
      ['with', undefined],
      ['without', none],
    ] as const) {
      for (const preallocation of ['falloc', 'full'] as const) {
        const store = openStore(`${name}-${preallocation}`, calls, new Uint8Array(1000).fill(1));
        await store.truncate(3_000_000, { preallocation });
        expect(store.size).toBe(3_000_000);
        const { allocatedBytes } = await store.status();
        expect(allocatedBytes).toBeGreaterThanOrEqual(3_000_000);
        const got = readFileSync(path(`${name}-${preallocation}`));
        expect([got[999], got[1000], got.length]).toEqual([1, 0, 3_000_000]);
        await store.close();
      }
    }
  });

  it('is as long as before when preallocation fails half way', async () => {
    const controller = new AbortController();
    const store = openStore('half', none, new Uint8Array(1000).fill(1));
    const pending = store.truncate(80_000_000, { preallocation: 'full', signal: controller.signal });
    controller.abort();
    await expect(pending).rejects.toMatchObject({ code: 'ABORTED' });
    expect(store.size).toBe(1000);
    expect(statSync(path('half')).size).toBe(1000);
    await store.close();
  });

  it.runIf(small !== undefined)('says NO_SPACE when the disk is full, and knows its size afterwards', async () => {
    const disk = `/proc/self/fd/${small}/disk`;
    for (const calls of [undefined, none]) {
      const store = storeAt(disk, 'disk', calls);
      await store.write(0, new Uint8Array(4096).fill(1));
      const noSpace = expect.objectContaining({
        code: 'NO_SPACE',
        details: expect.objectContaining({ errno: 'ENOSPC' }) as unknown,
      });
      await expect(store.truncate(3_000_000, { preallocation: 'falloc' })).rejects.toEqual(noSpace);
      await expect(store.truncate(3_000_000, { preallocation: 'full' })).rejects.toEqual(noSpace);
      expect(store.size).toBe(4096);
      const half = new Uint8Array(400_000).fill(2);
      await expect(
        (async () => {
          for (let i = 0; i < 4; i++) await store.write(4096 + i * half.length, half);
        })(),
      ).rejects.toEqual(noSpace);
      expect(store.size).toBe(statSync(disk).size);
      await expect(store.write(0, new Uint8Array(2_000_000))).rejects.toEqual(noSpace);
      await expect(store.writev(0, [new Uint8Array(2_000_000)])).rejects.toEqual(noSpace);
      expect(store.size).toBe(statSync(disk).size);
      await store.truncate(0);
      await store.close();
    }
  });

  it('tells its allocated space, its time and its identity as the system has them', async () => {
    const store = openStore('status', undefined, noise(random, 10_000));
    const stat = statSync(path('status'));
    expect(await store.status()).toEqual({
      allocatedBytes: stat.blocks * 512,
      modifiedSeconds: Math.floor(stat.mtimeMs / 1000),
      identity: `${stat.dev}:${stat.ino}`,
    });
    await store.close();
  });

  it('says what failed, where and why', async () => {
    const fd = openSync(path('closed-under-it'), 'w+');
    const store = new FileStore(fd, { name: 'a.raw', readOnly: false });
    const reader = openSync(path('closed-under-it'), 'r');
    const wrong = new FileStore(reader, { name: 'b.raw', readOnly: false });
    expect(() => wrong.write(0, Uint8Array.of(1))).toThrow(
      expect.objectContaining({
        message: 'could not write 0x1 bytes at 0x0 of "b.raw": bad file descriptor',
        details: { errno: 'EBADF', name: 'b.raw', offset: 0, length: 1 },
      }),
    );
    expect(() => wrong.truncate(10)).toThrow(
      expect.objectContaining({
        message: expect.stringMatching(/^could not resize "b.raw" from 0x0 to 0xa bytes: /) as string,
      }),
    );
    expect(wrong.size).toBe(0);
    expect(fstatSync(fd).size).toBe(0);
    await store.close();
    await wrong.close();
  });
});
