import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { FdIo, SYNC_LIMIT, Vector } from '../../src/storage/fd-io.ts';
import { noise, seededRandom } from '../../src/testing/random.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const random = seededRandom(1);

function openIo(name: string): FdIo {
  return new FdIo(openSync(path(name), 'w+'), name);
}

describe('FdIo', () => {
  it('answers at once up to SYNC_LIMIT, and by a promise above', async () => {
    const io = openIo('limit');
    const data = noise(random, SYNC_LIMIT + 1);
    expect(io.write(0, data.subarray(1), undefined)).toBeUndefined();
    expect(io.writev(0, [data.subarray(1)], SYNC_LIMIT, undefined)).toBeUndefined();
    expect(io.read(0, data.subarray(1), undefined)).toBeUndefined();
    expect(io.writeZeros(0, SYNC_LIMIT, undefined)).toBeUndefined();
    for (const pending of [
      io.write(0, data, undefined),
      io.writev(0, [data], data.length, undefined),
      io.read(0, data, undefined),
      io.writeZeros(0, SYNC_LIMIT + 1, undefined),
    ]) {
      expect(pending).toBeInstanceOf(Promise);
      await pending;
    }
    await io.close();
  });

  it('fills what is past the end with zeros, in short and long reads', async () => {
    const io = openIo('short');
    await io.write(0, Uint8Array.of(1, 2, 3), undefined);
    for (const length of [10, SYNC_LIMIT + 10]) {
      const into = new Uint8Array(length).fill(9);
      await io.read(1, into, undefined);
      expect([...into.subarray(0, 4)]).toEqual([2, 3, 0, 0]);
      expect(into.subarray(2).every((byte) => byte === 0)).toBe(true);
    }
    await io.close();
  });

  it('writes more buffers than one system call takes', async () => {
    const io = openIo('vectors');
    for (const each of [3, 700]) {
      const parts = Array.from({ length: 2500 }, (_, i) => noise(random, i % 5 === 0 ? 0 : each));
      const total = parts.reduce((sum, part) => sum + part.length, 0);
      await io.writev(7, parts, total, undefined);
      expect(Buffer.compare(readFileSync(path('vectors')).subarray(7, 7 + total), Buffer.concat(parts))).toBe(0);
    }
    await io.close();
  });

  it('writes zeros over megabytes', async () => {
    writeFileSync(path('zeros'), new Uint8Array(5_000_000).fill(1));
    const io = new FdIo(openSync(path('zeros'), 'r+'), 'zeros');
    await io.writeZeros(100, 4_900_001, undefined);
    const got = readFileSync(path('zeros'));
    expect([got[99], got[100], got[4_900_100], got[4_900_101]]).toEqual([1, 0, 0, 1]);
    expect(got.subarray(100, 4_900_101).every((byte) => byte === 0)).toBe(true);
    await io.close();
  });

  it('closes the descriptor only when running transfers have ended', async () => {
    const io = openIo('closing');
    const ended: string[] = [];
    // many calls: the next one after a close would fail, or hit another file
    const zeros = (io.writeZeros(0, 20_000_000, undefined) as Promise<void>).then(() => ended.push('zeros'));
    await Promise.all([zeros, io.close().then(() => ended.push('close'))]);
    expect(ended).toEqual(['zeros', 'close']);
    expect(readFileSync(path('closing')).length).toBe(20_000_000);
  });

  it('names what it did, where, and the errno', async () => {
    const fd = openSync(path('named'), 'w');
    const io = new FdIo(fd, 'some.img');
    try {
      await io.read(4096, new Uint8Array(512), undefined);
      expect.unreachable();
    } catch (error) {
      expect(error).toMatchObject({
        message: 'could not read 0x200 bytes at 0x1000 of "some.img": bad file descriptor',
        details: { errno: 'EBADF', name: 'some.img', offset: 4096, length: 512 },
      });
    } finally {
      closeSync(fd);
    }
  });

  it.runIf(existsSync('/dev/full'))('says NO_SPACE when the disk is full, in every kind of write', async () => {
    const io = new FdIo(openSync('/dev/full', 'w'), 'full');
    const expected = { code: 'NO_SPACE', details: { errno: 'ENOSPC' } };
    const short = new Uint8Array(512);
    const long = new Uint8Array(SYNC_LIMIT + 1);
    for (const write of [
      () => io.write(0, short, undefined),
      () => io.write(0, long, undefined),
      () => io.writev(0, [short], 512, undefined),
      () => io.writev(0, [long], long.length, undefined),
      () => io.writeZeros(0, long.length, undefined),
    ]) {
      await expect((async () => write())()).rejects.toMatchObject(expected);
    }
    await io.close();
  });

  it('keeps failing to flush once a flush has failed', async () => {
    const fd = openSync(path('flush'), 'w');
    const io = new FdIo(fd, 'flush');
    closeSync(fd);
    const first = await io.flush().catch((error: unknown) => error);
    expect(first).toMatchObject({ code: 'IO', details: { errno: 'EBADF' } });
    // the number is valid again, the data that was lost is not
    const other = openSync(path('flush'), 'w');
    expect(other).toBe(fd);
    expect(await io.flush().catch((error: unknown) => error)).toBe(first);
    closeSync(other);
  });

  it('ends with ABORTED between the calls of a long transfer', async () => {
    const io = openIo('abort');
    const controller = new AbortController();
    const pending = io.writeZeros(0, 64 * 1024 * 1024, controller.signal);
    controller.abort();
    await expect(pending).rejects.toMatchObject({ code: 'ABORTED' });
    await io.close();
  });
});

describe('Vector', () => {
  it('goes on where a call stopped, in the middle of a buffer too', () => {
    const parts = [Uint8Array.of(1, 2), new Uint8Array(0), Uint8Array.of(3, 4, 5), Uint8Array.of(6)];
    for (const counts of [[6], [1, 5], [2, 4], [3, 1, 1, 1], [1, 1, 1, 1, 1, 1]]) {
      const rest = new Vector(parts);
      let at = 0;
      for (const count of counts) {
        expect(Buffer.concat(rest.next()).subarray(0, 6 - at)).toEqual(Buffer.from([1, 2, 3, 4, 5, 6]).subarray(at));
        rest.advance(count);
        at += count;
      }
    }
  });

  it('gives at most as many buffers as a system call takes, the first never empty', () => {
    const parts = Array.from({ length: 3000 }, (_, i) => new Uint8Array(i % 2));
    const rest = new Vector(parts);
    expect(rest.next().length).toBe(1024);
    expect(rest.next()[0]?.length).toBe(1);
  });
});
