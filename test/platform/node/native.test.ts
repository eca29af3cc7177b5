import { closeSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { NOT_AVAILABLE, native, withoutNative } from '../../../src/platform/node/native.ts';
import { scratch } from '../../support/scratch.ts';

const path = scratch();
// whatever the whole run is told, this file is about the calls
delete process.env['COWDISK_NO_NATIVE'];
const calls = native();
/** Where the file system of the scratch directory has holes and native calls are installed. */
const linux = process.platform === 'linux' && calls.available;
const FAR = 5 * 2 ** 32;

function withFile<T>(name: string, body: (fd: number) => T): T {
  const fd = openSync(path(name), 'w+');
  try {
    return body(fd);
  } finally {
    closeSync(fd);
  }
}

afterEach(() => {
  delete process.env['COWDISK_NO_NATIVE'];
});

describe('native calls that are not there', () => {
  it('are switched off by COWDISK_NO_NATIVE=1 and come back without it', () => {
    process.env['COWDISK_NO_NATIVE'] = '1';
    expect(native().available).toBe(false);
    expect(native().missing).toMatch(/COWDISK_NO_NATIVE/);
    delete process.env['COWDISK_NO_NATIVE'];
    expect(native()).toBe(calls);
  });

  it('answer "not available", every one of them, at once and later', async () => {
    const none = withoutNative('for the test');
    for (const answer of [
      none.seekData(0, 0),
      none.seekHole(0, 0),
      none.deviceSize(0),
      none.deviceSectorSize(0),
      none.punchHole(0, 0, 1),
      none.zeroRange(0, 0, 1),
      none.allocate(0, 0, 1),
      none.discardDevice(0, 0, 1),
      none.zeroDevice(0, 0, 1),
      await none.later.punchHole(0, 0, 1),
      await none.later.zeroRange(0, 0, 1),
      await none.later.allocate(0, 0, 1),
      await none.later.discardDevice(0, 0, 1),
      await none.later.zeroDevice(0, 0, 1),
    ]) {
      expect(answer).toBe(NOT_AVAILABLE);
    }
  });
});

describe.runIf(linux)('native calls', () => {
  it('find data and holes, also beyond 4 GiB', () => {
    withFile('seek', (fd) => {
      ftruncateSync(fd, FAR + 2 ** 20);
      writeSync(fd, new Uint8Array(4096).fill(1), 0, 4096, FAR);
      expect(calls.seekData(fd, 0)).toBe(FAR);
      expect(calls.seekHole(fd, 0)).toBe(0);
      expect(calls.seekHole(fd, FAR)).toBe(FAR + 4096);
      expect(calls.seekData(fd, FAR + 4096)).toBe(-1);
      expect(calls.seekHole(fd, FAR + 2 ** 20)).toBe(-1);
      expect(calls.seekData(fd, 2 ** 45)).toBe(-1);
    });
  });

  it('punch holes that read as zero and keep the size', async () => {
    await withFile('punch', async (fd) => {
      writeSync(fd, new Uint8Array(65_536).fill(7), 0, 65_536, FAR);
      const before = fstatSync(fd).blocks;
      expect(calls.punchHole(fd, FAR + 4096, 8192)).toBe('done');
      expect(fstatSync(fd)).toMatchObject({ size: FAR + 65_536, blocks: before - 16 });
      const got = new Uint8Array(16_384);
      readSync(fd, got, 0, 16_384, FAR);
      expect([got[4095], got[4096], got[12_287], got[12_288]]).toEqual([7, 0, 0, 7]);
    });
  });

  it('zero and allocate ranges with their 64-bit offsets', () => {
    withFile('range', (fd) => {
      expect(calls.allocate(fd, FAR, 65_536)).toBe('done');
      expect(fstatSync(fd)).toMatchObject({ size: FAR + 65_536, blocks: 128 });
      writeSync(fd, new Uint8Array(8192).fill(9), 0, 8192, FAR);
      const zeroed = calls.zeroRange(fd, FAR + 1, 4095);
      const got = new Uint8Array(8192);
      readSync(fd, got, 0, 8192, FAR);
      // tmpfs has no zero range, and says so
      if (zeroed === 'done') expect([got[0], got[1], got[4095], got[4096]]).toEqual([9, 0, 0, 9]);
      else expect([zeroed, got[1]]).toEqual([NOT_AVAILABLE, 9]);
      expect(fstatSync(fd).size).toBe(FAR + 65_536);
    });
  });

  it('do the same in the pool', async () => {
    const fd = openSync(path('later'), 'w+');
    try {
      expect(await calls.later.allocate(fd, FAR, 65_536)).toBe('done');
      writeSync(fd, new Uint8Array(8192).fill(9), 0, 8192, FAR);
      expect(await calls.later.punchHole(fd, FAR, 4096)).toBe('done');
      const got = new Uint8Array(8192);
      readSync(fd, got, 0, 8192, FAR);
      expect([got[0], got[4095], got[4096]]).toEqual([0, 0, 9]);
    } finally {
      closeSync(fd);
    }
  });

  it('fail with the errno, at once and in the pool', async () => {
    const fd = openSync(path('reader'), 'a+');
    closeSync(fd);
    const reader = openSync(path('reader'), 'r');
    try {
      expect(() => calls.punchHole(reader, 0, 4096)).toThrow(
        expect.objectContaining({ code: 'EBADF', syscall: 'fallocate' }),
      );
      expect(() => calls.allocate(reader, 0, 4096)).toThrow(expect.objectContaining({ code: 'EBADF' }));
      await expect(calls.later.punchHole(reader, 0, 4096)).rejects.toMatchObject({ code: 'EBADF' });
      expect(() => calls.seekData(9999, 0)).toThrow(expect.objectContaining({ code: 'EBADF', syscall: 'lseek' }));
      await expect(calls.later.discardDevice(9999, 0, 512)).rejects.toMatchObject({ code: 'EBADF', syscall: 'ioctl' });
    } finally {
      closeSync(reader);
    }
  });

  it('do not take a regular file for a device', () => {
    withFile('plain', (fd) => {
      expect(calls.deviceSize(fd)).toBe(NOT_AVAILABLE);
      expect(calls.discardDevice(fd, 0, 512)).toBe(NOT_AVAILABLE);
      expect(calls.zeroDevice(fd, 0, 512)).toBe(NOT_AVAILABLE);
    });
  });
});
