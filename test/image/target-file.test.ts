/** Temporary names, replacing, in place, and what is left after a failure. */
import { describe, expect, it } from 'vitest';
import type { ProtocolDriver } from '../../src/core/protocol.ts';
import { TargetFile } from '../../src/image/target-file.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { MemoryFiles } from './support/memory-protocol.ts';

describe('a target file', () => {
  it('is written beside its place under another name, and renamed at the end', async () => {
    const files = new MemoryFiles();
    const target = await TargetFile.open(files.protocol, 'dir/a.qcow2');
    expect(target.inPlace).toBe(false);
    await target.file.write(0, Uint8Array.of(7));
    expect(files.names()).toEqual(['dir/.a.qcow2.part1']);
    await target.commit();
    expect(files.names()).toEqual(['dir/a.qcow2']);
    expect(files.bytes('dir/a.qcow2')).toEqual(Uint8Array.of(7));
    expect(files.open).toEqual([]);
  });

  it('leaves the old file as it was until then, and after a discard', async () => {
    const files = new MemoryFiles();
    files.add('a', Uint8Array.of(1));
    const target = await TargetFile.open(files.protocol, 'a');
    await target.file.write(0, Uint8Array.of(2));
    expect(files.bytes('a')).toEqual(Uint8Array.of(1));
    await target.discard();
    expect(files.names()).toEqual(['a']);
    expect(files.bytes('a')).toEqual(Uint8Array.of(1));
    expect(files.open).toEqual([]);
  });

  it('passes over names that leftovers of a killed program have', async () => {
    const files = new MemoryFiles();
    files.add('.a.part1', Uint8Array.of(1));
    files.add('.a.part2', Uint8Array.of(1));
    const target = await TargetFile.open(files.protocol, 'a');
    await target.commit();
    expect(files.names()).toEqual(['.a.part1', '.a.part2', 'a']);
  });

  it('stays within the length of names', async () => {
    const files = new MemoryFiles();
    const name = `dir/${'ä'.repeat(120)}`;
    const target = await TargetFile.open(files.protocol, name);
    const temporary = files.names()[0]?.slice(4) as string;
    expect(Buffer.byteLength(temporary)).toBeLessThan(255);
    await target.commit();
    expect(files.names()).toEqual([name]);
  });

  it('goes where a symbolic link leads, and takes over what that file is like', async () => {
    const files = new MemoryFiles();
    files.add('real/b', Uint8Array.of(1));
    const created: unknown[] = [];
    const protocol: ProtocolDriver = {
      ...files.protocol,
      status: async (name) => {
        const status = await files.protocol.status?.(name === 'a' ? 'real/b' : name);
        return status === undefined || name !== 'a' ? status : { ...status, realName: 'real/b' };
      },
      open: (name, options) => files.protocol.open(name === 'a' ? 'real/b' : name, options),
      create: async (name, options) => {
        created.push([name, options.like]);
        return (files.protocol.create as NonNullable<ProtocolDriver['create']>)(name, options);
      },
    };
    const target = await TargetFile.open(protocol, 'a');
    await target.file.write(0, Uint8Array.of(2));
    await target.commit();
    expect(created).toEqual([['real/.b.part1', 'real/b']]);
    expect(files.names()).toEqual(['real/b']);
    expect(files.bytes('real/b')).toEqual(Uint8Array.of(2));
  });

  it('does not replace a file that may not be written', async () => {
    const files = new MemoryFiles();
    files.add('a', Uint8Array.of(1));
    const protocol: ProtocolDriver = {
      ...files.protocol,
      open: () => Promise.reject(new Error('EACCES')),
    };
    await expect(TargetFile.open(protocol, 'a')).rejects.toThrow('EACCES');
    expect(files.names()).toEqual(['a']);
  });

  it('is written in place where the protocol cannot rename', async () => {
    const files = new MemoryFiles({ canRename: false });
    files.add('a', Uint8Array.of(1));
    const target = await TargetFile.open(files.protocol, 'a');
    expect(target.inPlace).toBe(true);
    expect(files.bytes('a')).toEqual(new Uint8Array(0));
    await target.discard();
    expect(files.names()).toEqual(['a']);
  });

  it.each(['device', 'pipe', 'other'] as const)('is written in place when it is a %s', async (kind) => {
    const files = new MemoryFiles();
    files.add('d', Uint8Array.of(1));
    const protocol: ProtocolDriver = {
      ...files.protocol,
      status: async () => ({ kind, size: 1, identity: 'd' }),
    };
    const target = await TargetFile.open(protocol, 'd');
    expect(target.inPlace).toBe(true);
    // Opening a pipe would wait for somebody who writes into it.
    expect(files.log).toEqual([kind === 'pipe' ? 'create d' : 'open d']);
    await target.commit();
    expect(files.names()).toEqual(['d']);
  });

  it('refuses directories and, where asked, anything that is there', async () => {
    const files = new MemoryFiles();
    files.add('a', Uint8Array.of(1));
    const protocol: ProtocolDriver = {
      ...files.protocol,
      status: async () => ({ kind: 'directory', size: 0, identity: 'd' }),
    };
    await expect(TargetFile.open(protocol, 'd')).rejects.toMatchObject({
      reason: 'target.directory',
      details: { errno: 'EISDIR' },
    });
    await expect(TargetFile.open(files.protocol, 'a', { exclusive: true })).rejects.toMatchObject({ code: 'EXISTS' });
    expect(files.open).toEqual([]);
  });

  it('tells failures under the name that the caller gave', async () => {
    const { protocol } = new MemoryFiles();
    const failing: ProtocolDriver = {
      ...protocol,
      create: (name) => protocol.open(`missing/${name}`, { readOnly: true }),
    };
    await expect(TargetFile.open(failing, 'dir/a')).rejects.toMatchObject({
      code: 'NOT_FOUND',
      message: 'could not create "dir/a": no such file or directory',
      details: { name: 'dir/a', errno: 'ENOENT' },
    });
  });

  it('removes the temporary file when closing or renaming fails', async () => {
    const files = new MemoryFiles({ wrap: (node) => new FaultStore(node, [{ on: 'close', carriedOut: true }]) });
    const target = await TargetFile.open(files.protocol, 'a');
    await expect(target.commit()).rejects.toMatchObject({ code: 'IO' });
    expect(files.names()).toEqual([]);

    const other = new MemoryFiles();
    const protocol: ProtocolDriver = { ...other.protocol, rename: () => Promise.reject(new Error('EXDEV')) };
    await expect((await TargetFile.open(protocol, 'a')).commit()).rejects.toThrow('EXDEV');
    expect(other.names()).toEqual([]);
    expect(other.open).toEqual([]);
  });
});
