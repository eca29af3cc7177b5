import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  existsSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  realpathSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { dirname } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { BlockNode } from '../../src/core/node.ts';
import { FileStore, fileProtocol, resolveFileName } from '../../src/storage/file.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();

async function create(name: string, options = {}): Promise<BlockNode> {
  const store = await fileProtocol.create?.(name, options);
  if (store === undefined) throw new Error('the file protocol cannot create');
  return store;
}

describe('open', () => {
  it('opens a file by name and by file:name, and calls it without the prefix', async () => {
    writeFileSync(path('a.raw'), 'abc');
    for (const name of [path('a.raw'), `file:${path('a.raw')}`]) {
      const store = await fileProtocol.open(name, { readOnly: true });
      expect(store).toMatchObject({ name: path('a.raw'), driver: 'file', size: 3 });
      expect(store).toBeInstanceOf(FileStore);
      await store.close();
    }
  });

  it('says that nothing is there, as the system does', async () => {
    await expect(fileProtocol.open('file:no/such', { readOnly: true })).rejects.toMatchObject({
      code: 'NOT_FOUND',
      message: 'could not open "no/such": no such file or directory',
      details: { errno: 'ENOENT', name: 'file:no/such' },
    });
  });

  it('refuses a directory and a socket', async () => {
    mkdirSync(path('directory'));
    await expect(fileProtocol.open(path('directory'), { readOnly: true })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      reason: 'file.not-regular',
      details: { errno: 'EISDIR', name: path('directory'), kind: 'directory' },
    });
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(path('socket'), resolve));
    await expect(fileProtocol.open(path('socket'), { readOnly: true })).rejects.toMatchObject({
      reason: 'file.not-regular',
      details: { kind: 'other' },
    });
    await new Promise((resolve) => server.close(resolve));
  });

  it.runIf(process.platform !== 'win32')('refuses a pipe instead of waiting for its other end', async () => {
    execFileSync('mkfifo', [path('pipe-in')]);
    for (const readOnly of [true, false]) {
      await expect(fileProtocol.open(path('pipe-in'), { readOnly })).rejects.toMatchObject({
        reason: 'file.not-regular',
        details: { kind: 'pipe' },
      });
    }
  });

  it('does not read a file for writing that may not be written', async () => {
    writeFileSync(path('locked.raw'), 'abc');
    chmodSync(path('locked.raw'), 0o444);
    chmodSync(dirname(path('x')), 0o755);
    const root = process.geteuid?.() === 0;
    if (root) process.seteuid?.(65_534);
    try {
      await expect(fileProtocol.open(path('locked.raw'), { readOnly: false })).rejects.toMatchObject({
        code: 'ACCESS',
        message: `could not open "${path('locked.raw')}": permission denied`,
        details: { errno: 'EACCES' },
      });
      const store = await fileProtocol.open(path('locked.raw'), { readOnly: true });
      await store.close();
    } finally {
      if (root) process.seteuid?.(0);
    }
  });

  it('refuses to begin once the signal has fired', async () => {
    await expect(
      fileProtocol.open(path('a.raw'), { readOnly: true, signal: AbortSignal.abort() }),
    ).rejects.toMatchObject({
      code: 'ABORTED',
    });
  });
});

describe('create', () => {
  it('makes an empty file, and empties one that is there', async () => {
    const store = await create(path('new.raw'));
    await store.write(0, new Uint8Array(1000).fill(1));
    await store.close();
    expect(statSync(path('new.raw')).mode % 0o1000).toBe(0o644 - (0o644 & process.umask()));
    const again = await create(`file:${path('new.raw')}`);
    expect(again.size).toBe(0);
    await again.close();
    expect(readFileSync(path('new.raw')).length).toBe(0);
  });

  it('leaves a taken name alone when asked to', async () => {
    writeFileSync(path('taken.raw'), 'abc');
    await expect(create(path('taken.raw'), { exclusive: true })).rejects.toMatchObject({
      code: 'EXISTS',
      message: `could not create "${path('taken.raw')}": file exists`,
      details: { errno: 'EEXIST' },
    });
    expect(readFileSync(path('taken.raw'), 'utf8')).toBe('abc');
    const store = await create(path('free.raw'), { exclusive: true });
    await store.close();
  });

  it('tells why a file cannot be made', async () => {
    await expect(create(path('no/such/directory'))).rejects.toMatchObject({
      code: 'NOT_FOUND',
      message: `could not create "${path('no/such/directory')}": no such file or directory`,
    });
    mkdirSync(path('in-the-way'));
    await expect(create(path('in-the-way'))).rejects.toMatchObject({ details: { errno: 'EISDIR' } });
  });

  it.runIf(process.platform !== 'win32')('writes forward only to a pipe', async () => {
    execFileSync('mkfifo', [path('pipe-out')]);
    // a pipe open for both directions never waits; it stands for the program that reads
    const reader = openSync(path('pipe-out'), 'r+');
    const store = await create(path('pipe-out'));
    expect(store.supports.access).toBe('forward');
    await store.write(0, Uint8Array.of(1, 2));
    await store.write(4, Uint8Array.of(3));
    await store.close();
    const got = new Uint8Array(10);
    expect(readSync(reader, got, 0, 10, null)).toBe(5);
    expect([...got.subarray(0, 5)]).toEqual([1, 2, 0, 0, 3]);
    closeSync(reader);
  });
});

describe('status', () => {
  it('tells kinds, sizes and identities without opening anything', async () => {
    writeFileSync(path('s.raw'), 'abcd');
    linkSync(path('s.raw'), path('s-hard.raw'));
    symlinkSync(path('s.raw'), path('s-soft.raw'));
    mkdirSync(path('s-dir'));
    const file = await fileProtocol.status?.(path('s.raw'));
    expect(file).toMatchObject({ kind: 'file', size: 4 });
    expect(await fileProtocol.status?.(`file:${path('s-hard.raw')}`)).toEqual(file);
    const soft = await fileProtocol.status?.(path('s-soft.raw'));
    expect(soft).toEqual({ ...file, realName: realpathSync(path('s.raw')) });
    expect(await fileProtocol.status?.(path('s-dir'))).toMatchObject({ kind: 'directory', size: 0 });
    expect(await fileProtocol.status?.(path('s-nothing'))).toBeUndefined();
    expect(await fileProtocol.status?.('/dev/null')).toMatchObject({ kind: 'device', size: 0 });
    const store = await fileProtocol.open(path('s-soft.raw'), { readOnly: true });
    expect((await store.status?.())?.identity).toBe(file?.identity);
    await store.close();
  });

  it('throws what is no answer', async () => {
    writeFileSync(path('plain'), '');
    await expect(fileProtocol.status?.(`${path('x')}\0`)).rejects.toBeInstanceOf(Error);
    // below a file there is nothing
    expect(await fileProtocol.status?.(path('plain/below'))).toBeUndefined();
  });
});

describe('rename and remove', () => {
  it('replace and delete files', async () => {
    writeFileSync(path('from'), 'new');
    writeFileSync(path('to'), 'old');
    await fileProtocol.rename?.(`file:${path('from')}`, path('to'));
    expect(readFileSync(path('to'), 'utf8')).toBe('new');
    await fileProtocol.remove?.(path('to'));
    expect(existsSync(path('to'))).toBe(false);
  });

  it('say what they could not do', async () => {
    await expect(fileProtocol.remove?.(path('gone'))).rejects.toMatchObject({
      code: 'NOT_FOUND',
      details: { errno: 'ENOENT', name: path('gone') },
    });
    await expect(fileProtocol.rename?.(path('gone'), path('x'))).rejects.toMatchObject({
      code: 'NOT_FOUND',
      details: { name: path('gone'), to: path('x') },
    });
  });
});

describe('resolve', () => {
  it.each([
    ['top.qcow2', 'base.raw', 'base.raw'],
    ['dir/top.qcow2', 'base.raw', 'dir/base.raw'],
    ['dir/top.qcow2', '../base.raw', 'dir/../base.raw'],
    ['/abs/top.qcow2', 'sub/base.raw', '/abs/sub/base.raw'],
    ['dir/top.qcow2', '/abs/base.raw', '/abs/base.raw'],
    ['file:dir/top.qcow2', 'base.raw', 'dir/base.raw'],
    ['dir/top.qcow2', 'file:base.raw', 'file:base.raw'],
    ['dir/a\\b.qcow2', 'base.raw', 'dir/base.raw'],
    ['top.qcow2', './nbd:x', './nbd:x'],
    ['file:nbd:x/top.qcow2', 'base.raw', './nbd:x/base.raw'],
  ])('%s names %s: %s', (base, relative, meant) => {
    expect(resolveFileName(base, relative, false)).toBe(meant);
    expect(fileProtocol.resolve(base, relative)).toBe(resolveFileName(base, relative));
  });

  it.each([
    ['C:\\images\\top.qcow2', 'base.raw', 'C:\\images\\base.raw'],
    ['C:\\images/mixed\\top.qcow2', '..\\base.raw', 'C:\\images/mixed\\..\\base.raw'],
    ['C:top.qcow2', 'base.raw', 'C:base.raw'],
    ['images\\top.qcow2', 'D:\\base.raw', 'D:\\base.raw'],
    ['images\\top.qcow2', 'd:base.raw', 'd:base.raw'],
    ['images\\top.qcow2', '\\\\host\\share\\base.raw', '\\\\host\\share\\base.raw'],
    ['C:/images/top.qcow2', 'base.raw', 'C:/images/base.raw'],
    ['file:C:\\images\\top.qcow2', 'base.raw', 'C:\\images\\base.raw'],
  ])('on Windows, %s names %s: %s', (base, relative, meant) => {
    expect(resolveFileName(base, relative, true)).toBe(meant);
  });
});
