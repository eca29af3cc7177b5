/** Locks of one process against itself: two openings of a file are strangers to each other, as two processes are. */
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { type Claim, CREATION_CLAIM, NO_CLAIM } from '../../src/core/permissions.ts';
import { type Native, NOT_AVAILABLE, native, withoutNative } from '../../src/platform/node/native.ts';
import { fileProtocol } from '../../src/storage/file.ts';
import { FileLocks, type FileLocksOptions } from '../../src/storage/file-locks.ts';
import { scratch } from '../support/scratch.ts';

const READER: Claim = { uses: 0b0001, shares: 0b0101 };
const WRITER: Claim = { uses: 0b1011, shares: 0b0101 };
const ANYBODY: Claim = { uses: 0b0001, shares: 0b1111 };
const SHARING_WRITER: Claim = { uses: 0b0011, shares: 0b1111 };

const BYTES = [100, 101, 102, 103, 200, 201, 202, 203];

const named = scratch();
const path = named('file');
writeFileSync(path, 'content');
const open: number[] = [];

afterEach(() => {
  for (const fd of open.splice(0)) closeSync(fd);
});

function opening(options: Partial<FileLocksOptions> = {}): FileLocks {
  const fd = openSync(path, 'r+');
  open.push(fd);
  return new FileLocks(fd, { name: 'file', native, ...options });
}

/** The bytes that somebody has locked. */
function lockedBytes(): number[] {
  const fd = openSync(path, 'r');
  try {
    return BYTES.filter((at) => native().byteIsLocked(fd, at) === true);
  } finally {
    closeSync(fd);
  }
}

/** The real calls, told of; `calls` answers instead where it has something to say. */
function watched(calls: (at: number, locked: boolean) => ReturnType<Native['lockByte']> | undefined): () => Native {
  const real = native();
  const watching: Native = Object.assign(Object.create(real) as Native, {
    missing: undefined,
    byteIsLocked: (fd: number, at: number) => real.byteIsLocked(fd, at),
    lockByte: (fd: number, at: number, locked: boolean) => calls(at, locked) ?? real.lockByte(fd, at, locked),
  });
  return () => watching;
}

describe.skipIf(!native().available)('a claim', () => {
  it('locks the byte of what is used and of what is not shared, and no other', () => {
    const file = opening();
    for (const [claim, bytes] of [
      [WRITER, [100, 101, 103, 201, 203]],
      [READER, [100, 201, 203]],
      [ANYBODY, [100]],
      [CREATION_CLAIM, [101, 103, 203]],
      [NO_CLAIM, []],
    ] as const) {
      file.claim(claim);
      expect(lockedBytes()).toEqual(bytes);
    }
  });

  it.each([
    ['a reader', READER, 'a reader', READER, undefined],
    ['a writer', WRITER, 'a reader', READER, { permission: 'write', shared: true }],
    ['a reader', READER, 'a writer', WRITER, { permission: 'write', shared: false }],
    ['a writer', WRITER, 'a writer', WRITER, { permission: 'write', shared: false }],
    ['a writer', WRITER, 'who shares everything', ANYBODY, undefined],
    ['a reader', READER, 'a sharing writer', SHARING_WRITER, { permission: 'write', shared: false }],
    ['a sharing writer', SHARING_WRITER, 'a sharing writer', SHARING_WRITER, undefined],
    ['a sharing writer', SHARING_WRITER, 'a reader', READER, { permission: 'write', shared: true }],
    ['who resizes', CREATION_CLAIM, 'who resizes', CREATION_CLAIM, { permission: 'resize', shared: false }],
  ] as const)('next to %s, of %s that is %s', (...[, held, , claim, refusal]) => {
    opening().claim(held);
    const before = lockedBytes();
    const file = opening();
    if (refusal === undefined) {
      file.claim(claim);
      expect(file.state).toBe('held');
      return;
    }
    expect(() => file.claim(claim)).toThrow(
      expect.objectContaining({
        code: 'LOCKED',
        reason: 'file.locked',
        details: { name: 'file', ...refusal },
        message: expect.stringContaining(`"${refusal.permission}" lock`),
      }),
    );
    expect(file.state).toBe('none');
    expect(lockedBytes()).toEqual(before);
  });

  it('that is refused leaves what was held before', () => {
    const [first, second] = [opening(), opening()];
    first.claim(READER);
    second.claim(READER);
    expect(() => first.claim(WRITER)).toThrow('"file"');
    second.claim(NO_CLAIM);
    expect(lockedBytes()).toEqual([100, 201, 203]);
    first.claim(WRITER);
    expect(() => second.claim(READER)).toThrow('"write"');
  });

  it('looks before anything is unlocked, and only when something is added', () => {
    const order: string[] = [];
    const file = opening({
      native: watched((at, locked) => {
        order.push(`${locked ? '+' : '-'}${at}`);
        return undefined;
      }),
    });
    file.claim(READER);
    file.claim(WRITER);
    // another writer would now be refused; the one who is there is never asked about what it gives back
    file.claim(ANYBODY);
    expect(order).toEqual(['+100', '+201', '+203', '+101', '+103', '-101', '-103', '-201', '-203']);
  });

  it('with forceShare shares everything, next to a writer, but not next to who lets nobody read', () => {
    opening().claim(WRITER);
    const file = opening({ forceShare: true });
    file.claim(READER);
    expect(file.state).toBe('held');
    for (const fd of open.splice(0)) closeSync(fd);

    opening().claim({ uses: 0b0011, shares: 0b1100 });
    expect(() => opening({ forceShare: true }).claim(READER)).toThrow(
      expect.objectContaining({ details: { name: 'file', permission: 'consistent read', shared: false } }),
    );
  });

  it('is given back although a child process has a copy of the open file', async () => {
    const fd = openSync(path, 'r+');
    const locks = new FileLocks(fd, { name: 'file', native });
    locks.claim(WRITER);
    const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'], { stdio: [fd, 'ignore', 'ignore'] });
    const ended = new Promise((resolve) => child.once('exit', resolve));
    try {
      locks.release();
      closeSync(fd);
      expect(lockedBytes()).toEqual([]);
    } finally {
      child.kill('SIGKILL');
      await ended;
    }
  });

  it('ends with the file', async () => {
    const store = await fileProtocol.open(path, { readOnly: false });
    store.locks?.claim(WRITER);
    expect(() => opening().claim(READER)).toThrow();
    await store.close();
    expect(lockedBytes()).toEqual([]);
    opening().claim(WRITER);
  });
});

describe.skipIf(!native().available)('a claim that another opening hands over', () => {
  it.each([
    ['a reader becomes a writer', READER, WRITER],
    ['a writer becomes a reader', WRITER, READER],
    ['a writer stays one', WRITER, WRITER],
  ])('%s, and at every step somebody of the two is there', (_, from, to) => {
    const before: number[][] = [];
    const calls = watched(() => {
      before.push(lockedBytes());
      return undefined;
    });
    const [older, newer] = [opening({ native: calls }), opening({ native: calls })];
    older.claim(from);
    before.length = 0;
    newer.claim(to, older);
    expect([older.state, newer.state]).toEqual(['none', 'held']);
    // what both have in common
    expect(before.length).toBeGreaterThan(6);
    for (const locked of [...before, lockedBytes()]) expect(locked).toEqual(expect.arrayContaining([100, 201, 203]));
    expect(() => opening().claim(WRITER)).toThrow('"file"');
  });

  it('goes back where it is refused', () => {
    const [older, newer, other] = [opening(), opening(), opening()];
    older.claim(READER);
    other.claim(READER);
    expect(() => newer.claim(WRITER, older)).toThrow('"write"');
    expect([older.state, newer.state]).toEqual(['held', 'none']);
    other.claim(NO_CLAIM);
    expect(lockedBytes()).toEqual([100, 201, 203]);
    newer.claim(WRITER, older);
    expect([older.state, newer.state]).toEqual(['none', 'held']);
    older.claim(READER, newer);
    expect(lockedBytes()).toEqual([100, 201, 203]);
  });
});

describe('where there are no locks', () => {
  const missing = { native: () => withoutNative('not here') };

  it('claims succeed, and the state says what they are worth', () => {
    const file = opening(missing);
    file.claim(WRITER);
    expect([file.state, file.missing]).toEqual(['unavailable', 'not here']);
    opening(missing).claim(WRITER);
    expect(lockedBytes()).toEqual([]);
  });

  it('a caller who wants them is told', () => {
    expect(() => opening({ ...missing, locking: 'on' }).claim(READER)).toThrow(
      expect.objectContaining({
        code: 'UNSUPPORTED',
        reason: 'file.locking',
        message: expect.stringContaining('not here'),
      }),
    );
  });

  it.skipIf(!native().available)('because the file system has none, goes on as well', () => {
    const calls = { native: watched(() => NOT_AVAILABLE) };
    const file = opening(calls);
    file.claim(WRITER);
    expect([file.state, file.missing]).toEqual(['unavailable', expect.stringContaining('file system')]);
    expect(() => opening({ ...calls, locking: 'on' }).claim(READER)).toThrow('file system');
  });

  it.skipIf(!native().available)('because nobody wants any, others are not seen either', () => {
    opening().claim(WRITER);
    const file = opening({ locking: 'off' });
    file.claim(WRITER);
    expect([file.state, file.missing]).toEqual(['off', undefined]);
  });
});

describe.skipIf(!native().available)('a lock that cannot be taken', () => {
  it('because somebody has the byte for himself is refused by its number', () => {
    const file = opening({ native: watched((at) => (at === 201 ? 'taken' : undefined)) });
    expect(() => file.claim(READER)).toThrow(
      expect.objectContaining({ code: 'LOCKED', reason: 'file.lock-byte', details: { name: 'file', byte: 201 } }),
    );
    expect(lockedBytes()).toEqual([]);
  });

  it('for a failure of the system says which', () => {
    const failure = Object.assign(new Error('EIO: fcntl'), { code: 'EIO' });
    const calls = watched((at) => {
      if (at === 203) throw failure;
      return undefined;
    });
    const file = opening({ native: calls });
    expect(() => file.claim(READER)).toThrow(
      expect.objectContaining({ code: 'IO', cause: failure, message: expect.stringContaining('byte 203') }),
    );
    expect(lockedBytes()).toEqual([]);
  });
});

describe.skipIf(!native().available)('creating over a file in use', () => {
  it('is refused before the file is touched', async () => {
    opening().claim(READER);
    await expect(fileProtocol.create?.(path, {})).rejects.toMatchObject({ code: 'LOCKED' });
    expect(readFileSync(path, 'utf8')).toBe('content');
  });

  it('keeps others away until it is closed', async () => {
    const other = named('other');
    writeFileSync(other, 'old');
    const store = await fileProtocol.create?.(other, {});
    const reader = await fileProtocol.open(other, { readOnly: true });
    expect(() => reader.locks?.claim(READER)).toThrow('"write"');
    await store?.close();
    reader.locks?.claim(READER);
    await reader.close();
  });
});
