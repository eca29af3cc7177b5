import { describe, expect, it } from 'vitest';
import { assert, BlockError, errnoOf, fromSystemError, hex, isBlockError } from '../../src/base/errors.ts';

describe('an error of this library', () => {
  it('carries code, reason, details and cause, and prints as JSON', () => {
    const cause = new Error('below');
    const error = new BlockError('CORRUPT', 'qcow2 "a": bad', { reason: 'qcow2.bad', details: { offset: 5 }, cause });
    expect(error).toBeInstanceOf(Error);
    expect(error).toMatchObject({
      name: 'BlockError',
      code: 'CORRUPT',
      reason: 'qcow2.bad',
      details: { offset: 5 },
      cause,
    });
    expect(JSON.parse(JSON.stringify(error))).toEqual({
      name: 'BlockError',
      code: 'CORRUPT',
      reason: 'qcow2.bad',
      message: 'qcow2 "a": bad',
      details: { offset: 5 },
    });
    const bare = new BlockError('IO', 'x');
    expect([bare.reason, bare.details, 'cause' in bare]).toEqual([undefined, {}, false]);
  });

  it('is recognised by its brand, not by its class, so that two copies of the library know each other', () => {
    expect(isBlockError(new BlockError('IO', 'x'))).toBe(true);
    expect(isBlockError({ [Symbol.for('cowdisk.BlockError')]: true })).toBe(true);
    for (const other of [new Error('x'), null, undefined, 'x', { code: 'IO' }]) expect(isBlockError(other)).toBe(false);
  });
});

describe('failures of the system', () => {
  it.each([
    ['ENOENT', 'NOT_FOUND', 'no such file or directory'],
    ['ENOSPC', 'NO_SPACE', 'no space left on device'],
    ['EACCES', 'ACCESS', 'permission denied'],
    ['EROFS', 'READ_ONLY', 'read-only file system'],
    ['EISDIR', 'INVALID_ARGUMENT', 'is a directory'],
    ['EIO', 'IO', 'input/output error'],
  ])('%s keeps its errno and text', (errno, code, text) => {
    const error = fromSystemError(Object.assign(new Error('raw'), { code: errno }), 'could not open "a"', {
      name: 'a',
    });
    expect(error).toMatchObject({
      code,
      message: `could not open "a": ${text}`,
      details: { errno, name: 'a' },
      reason: 'system',
    });
    expect(errnoOf(error)).toBe(errno);
  });

  it('without a known errno keep their own words', () => {
    expect(fromSystemError(new Error('strange thing'), 'doing').message).toBe('doing: input/output error');
    const unknown = fromSystemError(Object.assign(new Error('strange thing'), { code: 'ESTRANGE' }), 'doing');
    expect([unknown.code, unknown.message]).toEqual(['IO', 'doing: strange thing']);
    expect(fromSystemError('text', 'doing').code).toBe('IO');
  });

  it('are wrapped once', () => {
    const error = new BlockError('BUSY', 'x');
    expect(fromSystemError(error, 'doing')).toBe(error);
  });
});

describe('the errno of an error', () => {
  it('is the deepest known one on the way down, else the nearest to its code', () => {
    const system = fromSystemError(Object.assign(new Error(), { code: 'ENOSPC' }), 'writing');
    expect(errnoOf(new BlockError('IO', 'x', { cause: system }))).toBe('ENOSPC');
    expect(errnoOf(new BlockError('READ_ONLY', 'x'))).toBe('EROFS');
    expect(errnoOf(new BlockError('IO', 'x'))).toBe('EIO');
    expect(errnoOf(new Error('x'))).toBe('EIO');
    expect(errnoOf(undefined)).toBe('EIO');
    expect(errnoOf(new BlockError('IO', 'x', { details: { errno: 'ENOMEDIUM' } }))).toBe('ENOMEDIUM');
  });

  it('is found though causes go round in a circle', () => {
    const error = new Error('x');
    error.cause = error;
    expect(errnoOf(error)).toBe('EIO');
  });
});

it('a broken invariant is an internal error', () => {
  assert(true, 'fine');
  expect(() => assert(false, 'count below zero')).toThrow(
    expect.objectContaining({ code: 'INTERNAL', message: 'internal error: count below zero' }),
  );
});

it('offsets are shown in hex', () => {
  expect([hex(0), hex(2 ** 40 + 255)]).toEqual(['0x0', '0x100000000ff']);
});
