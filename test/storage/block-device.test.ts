import { execFileSync } from 'node:child_process';
import {
  closeSync,
  constants,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { BlockNode } from '../../src/core/node.ts';
import { type Native, type NativeOutcome, NOT_AVAILABLE, withoutNative } from '../../src/platform/node/native.ts';
import { BlockDeviceStore, probeSize, sizeFromSysfs } from '../../src/storage/block-device.ts';
import { fileProtocol } from '../../src/storage/file.ts';
import type { StoreUnderTest } from '../../src/testing/store-suite.ts';
import { storeSuite } from '../conformance/store.suite.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const SIZE = 1024 * 1024;

/** A loop device that its guard keeps: it was told to go when its last user closes it, so a run that is killed leaves none. */
interface Loop {
  readonly device: string;
  readonly guard: number;
}

function attachLoop(file: string): Loop {
  const answer = execFileSync('losetup', ['--find', '--show', file], { stdio: ['ignore', 'pipe', 'ignore'] });
  const device = answer.toString().trim();
  try {
    return { device, guard: openSync(device, 'r') };
  } finally {
    execFileSync('losetup', ['--detach', device]);
  }
}

/** Loop devices need root and the kernel's module; without them the injected tests below stand alone. */
const hasLoop = ((): boolean => {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return false;
  try {
    writeFileSync(path('loop-probe'), new Uint8Array(4096));
    closeSync(attachLoop(path('loop-probe')).guard);
    return true;
  } catch {
    return false;
  }
})();

async function overLoop(
  environment: Record<string, string>,
): Promise<StoreUnderTest & { device: string; file: string }> {
  const directory = mkdtempSync(join(tmpdir(), 'cowdisk-loop-'));
  const file = join(directory, 'disk.raw');
  writeFileSync(file, new Uint8Array(SIZE).fill(0xee));
  const { device, guard } = attachLoop(file);
  Object.assign(process.env, environment);
  return {
    device,
    file,
    store: await fileProtocol.open(device, { readOnly: false }),
    reopen: (readOnly) => fileProtocol.open(device, { readOnly }),
    dispose: () => {
      for (const key of Object.keys(environment)) delete process.env[key];
      closeSync(guard);
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

async function withLoop(
  environment: Record<string, string>,
  body: (device: string, store: BlockNode, file: string) => Promise<void>,
): Promise<void> {
  const subject = await overLoop(environment);
  try {
    await body(subject.device, subject.store, subject.file);
  } finally {
    await subject.store.close();
    await subject.dispose?.();
  }
}

if (hasLoop) {
  storeSuite({ name: 'loop device', create: () => overLoop({}) });
  storeSuite({
    name: 'loop device without native calls',
    create: () => overLoop({ COWDISK_NO_NATIVE: '1' }),
    steps: 60,
  });
}

describe.runIf(hasLoop)('BlockDeviceStore on a loop device', () => {
  it('knows its size and kind with and without native calls', async () => {
    for (const environment of [{}, { COWDISK_NO_NATIVE: '1' }]) {
      await withLoop(environment, async (device, store) => {
        expect(store).toMatchObject({ size: SIZE, driver: 'host_device', name: device });
        const status = await fileProtocol.status?.(device);
        expect(status).toEqual({
          kind: 'device',
          size: SIZE,
          modifiedSeconds: expect.any(Number),
          identity: `device:${statSync(device).rdev}`,
        });
        expect(await store.status?.()).toMatchObject({ identity: status?.identity });
      });
    }
  });

  it('discards whole sectors, and the space goes back', async () => {
    await withLoop({}, async (_, store, file) => {
      const before = statSync(file).blocks;
      await store.discard(1, SIZE - 2);
      await store.flush();
      expect(statSync(file).blocks).toBeLessThan(before);
      const edge = new Uint8Array(512);
      await store.read(0, edge);
      expect(edge.every((byte) => byte === 0xee)).toBe(true);
    });
  });

  it('zeroes any range exactly, whichever way', async () => {
    await withLoop({}, async (_, store, file) => {
      await store.writeZeroes(700, 200_000);
      await store.writeZeroes(300_000, 100, { unmap: true });
      await store.writeZeroes(400_001, 300_000, { unmap: true });
      await store.flush();
      const got = readFileSync(file);
      for (const [start, length] of [
        [700, 200_000],
        [300_000, 100],
        [400_001, 300_000],
      ] as const) {
        expect(got.subarray(start, start + length).every((byte) => byte === 0)).toBe(true);
        expect([got[start - 1], got[start + length]]).toEqual([0xee, 0xee]);
      }
    });
  });

  it('cannot be created exclusively, and keeps its size when an image is created on it', async () => {
    await withLoop({}, async (device) => {
      await expect(fileProtocol.create?.(device, { exclusive: true })).rejects.toMatchObject({ code: 'EXISTS' });
      const created = await fileProtocol.create?.(device, {});
      expect(created?.size).toBe(SIZE);
      await created?.close();
    });
  });
});

/** A file that stands for a device of the same size, and native calls that say what they were asked. */
function fakeDevice(change: Partial<Native> = {}): { store: BlockDeviceStore; asked: string[]; file: string } {
  const asked: string[] = [];
  const file = path('fake');
  writeFileSync(file, new Uint8Array(SIZE).fill(0xee));
  const fill = (fd: number, offset: number, length: number): NativeOutcome => {
    writeSync(fd, new Uint8Array(length), 0, length, offset);
    return 'done';
  };
  const note =
    (what: string, answer: NativeOutcome = 'done') =>
    (_fd: number, offset: number, length: number): NativeOutcome => {
      asked.push(`${what} ${offset}+${length}`);
      return answer;
    };
  const later = (call: (fd: number, offset: number, length: number) => NativeOutcome) => {
    return async (fd: number, offset: number, length: number): Promise<NativeOutcome> => call(fd, offset, length);
  };
  const calls: Native = {
    ...withoutNative(''),
    available: true,
    missing: undefined,
    deviceSize: () => SIZE,
    deviceSectorSize: () => 4096,
    discardDevice: note('discard'),
    later: {
      ...withoutNative('').later,
      discardDevice: later(note('discard later')),
      punchHole: later((fd, offset, length) => {
        note('punch')(fd, offset, length);
        return fill(fd, offset, length);
      }),
      zeroDevice: later((fd, offset, length) => {
        note('zero')(fd, offset, length);
        return fill(fd, offset, length);
      }),
    },
    ...change,
  };
  const fd = openSync(file, constants.O_RDWR);
  return { store: new BlockDeviceStore(fd, { name: 'fake', readOnly: false, native: calls }), asked, file };
}

describe('BlockDeviceStore', () => {
  it('asks for whole sectors of its own size only', async () => {
    const { store, asked } = fakeDevice();
    expect(store.limits).toMatchObject({ discardAlign: 4096, zeroAlign: 4096, requestAlign: 1 });
    await store.discard(100, 10_000);
    await store.discard(100, 4000);
    await store.writeZeroes(4000, 10_000);
    await store.writeZeroes(4096, 4096, { unmap: true });
    expect(asked).toEqual(['discard 4096+4096', 'zero 4096+8192', 'punch 4096+4096']);
    await store.close();
  });

  it('zeroes the edges that are no whole sector by writing', async () => {
    const { store, file } = fakeDevice();
    await store.writeZeroes(4000, 10_000);
    await store.writeZeroes(20_000, 100);
    await store.close();
    const got = readFileSync(file);
    expect([got[3999], got[4000], got[13_999], got[14_000]]).toEqual([0xee, 0, 0, 0xee]);
    expect(got.subarray(4000, 14_000).every((byte) => byte === 0)).toBe(true);
    expect([got[19_999], got[20_000], got[20_099], got[20_100]]).toEqual([0xee, 0, 0, 0xee]);
  });

  it('takes long requests to the pool', async () => {
    const { store, asked } = fakeDevice();
    expect(store.discard(0, SIZE)).toBeUndefined();
    const big = new BlockDeviceStore(openSync(path('fake'), 'r+'), {
      name: 'big',
      readOnly: false,
      size: 2 ** 40,
      native: {
        ...withoutNative(''),
        available: true,
        later: { ...withoutNative('').later, discardDevice: async () => 'done' },
      },
    });
    expect(big.discard(0, 2 ** 40)).toBeInstanceOf(Promise);
    expect(asked).toEqual([`discard 0+${SIZE}`]);
    await big.close();
    await store.close();
  });

  it('falls back to writing zeros, and says that this is not fast', async () => {
    const refuse = async (): Promise<NativeOutcome> => NOT_AVAILABLE;
    const { store, file } = fakeDevice({
      later: { ...withoutNative('').later, punchHole: refuse, zeroDevice: refuse },
    });
    expect(store.supports.writeZeroes).toBe('fast');
    await store.writeZeroes(1, 100_000, { unmap: true });
    expect(store.supports.writeZeroes).toBe('emulated');
    const slow = { code: 'UNSUPPORTED', reason: 'store.zeroes-slow' };
    expect(() => store.writeZeroes(0, 8192, { fastOnly: true })).toThrow(expect.objectContaining(slow));
    await store.close();
    const got = readFileSync(file);
    expect([got[0], got[1], got[100_000], got[100_001]]).toEqual([0xee, 0, 0, 0xee]);
  });

  it('is fast only where a punch is allowed: BLKZEROOUT may write', async () => {
    const { store, asked } = fakeDevice();
    await expect((async () => store.writeZeroes(0, 8192, { fastOnly: true }))()).rejects.toMatchObject({
      code: 'UNSUPPORTED',
    });
    expect(asked).toEqual([]);
    await store.writeZeroes(0, 8192, { fastOnly: true, unmap: true });
    expect(asked).toEqual(['punch 0+8192']);
    await store.close();
  });

  it('stops asking for discards where there are none', async () => {
    let asked = 0;
    const { store } = fakeDevice({
      discardDevice: () => {
        asked++;
        return NOT_AVAILABLE;
      },
    });
    await store.discard(0, 8192);
    await store.discard(0, 8192);
    expect(asked).toBe(1);
    expect(store.supports.discard).toBe(false);
    await store.close();
  });

  it('surfaces failures of the device', async () => {
    const { store } = fakeDevice({
      discardDevice: () => {
        throw Object.assign(new Error('EIO: ioctl'), { code: 'EIO' });
      },
    });
    expect(() => store.discard(0, 8192)).toThrow(
      expect.objectContaining({
        code: 'IO',
        message: 'could not discard 0x2000 bytes at 0x0 of "fake": input/output error',
      }),
    );
    await store.close();
  });

  it.runIf(process.platform === 'linux')('has no size where a character device has none', async () => {
    const store = await fileProtocol.open('/dev/zero', { readOnly: true });
    expect(store).toMatchObject({ size: 0, driver: 'host_device' });
    await store.close();
    const writable = await fileProtocol.open('/dev/null', { readOnly: false });
    await writable.flush();
    await writable.close();
  });
});

describe('probeSize', () => {
  it('finds every size in sectors, by few reads', () => {
    for (const sectors of [0, 1, 2, 3, 4, 7, 8, 9, 1000, 65_535, 65_536, 2 ** 31 + 1]) {
      let reads = 0;
      const size = probeSize((offset) => {
        reads++;
        expect(offset % 512).toBe(0);
        return offset + 512 <= sectors * 512;
      });
      expect(size).toBe(sectors * 512);
      expect(reads).toBeLessThan(90);
    }
  });
});

describe('sizeFromSysfs', () => {
  it('reads the sectors of the device number, large numbers included', () => {
    const root = path('sysfs');
    execFileSync('mkdir', ['-p', join(root, '259:70000'), join(root, '8:1')]);
    writeFileSync(join(root, '259:70000', 'size'), '4194304\n');
    writeFileSync(join(root, '8:1', 'size'), '\n');
    const rdev = (BigInt(70_000 % 256) | (259n << 8n) | (BigInt(Math.floor(70_000 / 256)) << 20n)) as bigint;
    expect(sizeFromSysfs(rdev, root)).toBe(4_194_304 * 512);
    expect(sizeFromSysfs(0x801n, root)).toBeUndefined();
    expect(sizeFromSysfs(0x802n, root)).toBeUndefined();
  });
});
