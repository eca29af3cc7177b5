/** Creating: what is refused before anything is touched, sizes from backing files, and what a failure leaves. */
import { describe, expect, it } from 'vitest';
import type { FormatDriver } from '../../src/core/format.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { type CreateImageOptions, createImage, planCreate } from '../../src/image/create.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { drivers, FORMATS, KiB, make, makeOverlay, open } from './support/fixtures.ts';
import { MemoryFiles } from './support/memory-protocol.ts';

function plan(files: MemoryFiles, name: string, options: Partial<CreateImageOptions>) {
  return planCreate(name, { ...drivers(files), format: 'qcow2', ...options });
}

describe('planning an image', () => {
  it('touches nothing, and tells name, size and all options', async () => {
    const files = new MemoryFiles();
    const planned = await plan(files, 'a', { size: 1024 * KiB, options: { clusterSize: 4096 } });
    expect(planned).toMatchObject({ name: 'a', size: 1024 * KiB, backing: undefined });
    expect(planned.options).toMatchObject({ clusterSize: 4096, refcountBits: 16, size: 1024 * KiB });
    expect(files.log).toEqual([]);
    await planned.execute();
    await using image = await open(files, 'a');
    expect(image.virtualSize).toBe(1024 * KiB);
  });

  it('takes the size from the option of that name, and refuses two', async () => {
    const files = new MemoryFiles();
    expect((await plan(files, 'a', { options: { size: 4096 } })).size).toBe(4096);
    await expect(plan(files, 'a', { size: 4096, options: { size: 4096 } })).rejects.toMatchObject({
      reason: 'create.size-twice',
    });
  });

  it.each([
    [{ format: 'nofmt', size: 512 }, 'INVALID_ARGUMENT', 'image.unknown-format'],
    [{}, 'OPTION', 'create.size-missing'],
    [{ size: -1 }, 'OPTION', 'create.size'],
    [{ size: 2 ** 53 }, 'OPTION', 'create.size'],
    [{ size: 512, options: { nonsense: 1 } }, 'OPTION', 'option.unknown'],
    [{ size: 512, backing: { name: '', format: 'raw' } }, 'OPTION', 'create.backing-empty'],
    [{ size: 512, options: { backingFmt: 'raw' } }, 'OPTION', 'create.format-without-backing'],
    [{ format: 'raw', size: 512, backing: { name: 'b', format: 'raw' } }, 'OPTION', 'create.backing-unsupported'],
    [{ size: 512, backing: { name: 'nope', format: 'raw' } }, 'NOT_FOUND', 'create.backing-open'],
    [{ size: 512, backing: { name: 'base', format: 'nofmt' } }, 'INVALID_ARGUMENT', 'create.backing-open'],
    [{ size: 512, backing: { name: 'raw', format: 'qcow2' } }, 'WRONG_FORMAT', 'create.backing-open'],
    [{ backing: { name: 'nope', format: 'raw' }, backingUnchecked: true }, 'OPTION', 'create.size-missing'],
    [{ size: 512, backing: { name: 'json:{}', format: 'raw' } }, 'REFERENCE_DENIED', 'reference.json'],
  ])('refuses %o', async (options, code, reason) => {
    const files = new MemoryFiles();
    await make(files, 'base', { size: 64 * KiB });
    files.add('raw', new Uint8Array(512));
    const before = files.names();
    await expect(plan(files, 'a', options)).rejects.toMatchObject({ code, reason });
    expect(files.names()).toEqual(before);
    expect(files.open).toEqual([]);
  });

  it('refuses formats that cannot be created', async () => {
    const { create: _, ...rest } = raw;
    const readOnly: FormatDriver = { ...rest, name: 'ro' };
    const files = new MemoryFiles();
    await expect(plan(files, 'a', { format: readOnly, size: 512 })).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'create.unsupported',
    });
  });

  it('names the detected format when the backing format is missing (M-28)', async () => {
    const files = new MemoryFiles();
    await make(files, 'base', { size: 64 * KiB });
    await expect(plan(files, 'a', { backing: { name: 'base' } })).rejects.toMatchObject({
      reason: 'create.backing-format',
      details: { name: 'base', detected: 'qcow2' },
    });
    await expect(
      plan(files, 'a', { size: 512, backing: { name: 'base' }, backingUnchecked: true }),
    ).rejects.toMatchObject({ reason: 'create.backing-format' });
  });

  it('refuses the image itself as its backing file, by name, by resolved name and by identity', async () => {
    const files = new MemoryFiles();
    await make(files, 'dir/a', { size: 64 * KiB });
    files.link('dir/b', 'dir/a');
    const before = files.bytes('dir/a');
    for (const [target, name] of [
      ['dir/a', 'a'],
      ['dir/a', 'b'],
      ['x', 'x'],
    ] as const) {
      await expect(plan(files, target, { size: 512, backing: { name, format: 'qcow2' } })).rejects.toMatchObject({
        reason: 'create.same-name',
      });
    }
    expect(files.bytes('dir/a')).toEqual(before);
  });
});

describe('creating an image', () => {
  it('takes the size of the backing file, which it names relative to itself', async () => {
    const files = new MemoryFiles();
    await make(files, 'dir/base', { size: 192 * KiB }, [[0, 512, 5]]);
    await makeOverlay(files, 'dir/top', 'base');
    await using image = await open(files, 'dir/top', { references: 'same-directory' });
    expect(image.virtualSize).toBe(192 * KiB);
    expect((await image.info()).backing).toEqual({ name: 'base', format: 'qcow2' });
    expect((await image.read(0, 1))[0]).toBe(5);
  });

  it('looks at the backing file only, not at what lies below it', async () => {
    const files = new MemoryFiles();
    await make(files, 'c1', { size: 64 * KiB });
    await makeOverlay(files, 'c2', 'c1');
    files.files.delete('c1');
    await makeOverlay(files, 'c3', 'c2');
    expect(files.names()).toEqual(['c2', 'c3']);
  });

  it('can name a file that is not there, unchecked', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 512, backing: { name: 'later', format: 'raw' }, backingUnchecked: true });
    expect(files.log.filter((line) => line.includes('later'))).toEqual([]);
  });

  it('takes the backing file from the options as well', async () => {
    const files = new MemoryFiles();
    await make(files, 'base', { size: 64 * KiB });
    await make(files, 'a', { options: { backingFile: 'base', backingFmt: 'qcow2' } });
    await using image = await open(files, 'a', { references: 'allow' });
    expect(image.backingName).toBe('base');
  });

  it('replaces an existing file only when the new image is complete (Q-142)', async () => {
    const old = Uint8Array.of(1, 2, 3);
    let failing = true;
    const files = new MemoryFiles({
      wrap: (node, name) =>
        new FaultStore(node, failing && name !== 'a' ? [{ on: 'write', nth: 2, errno: 'ENOSPC', always: true }] : []),
    });
    files.add('a', old);
    await expect(make(files, 'a', { size: 64 * KiB })).rejects.toMatchObject({ code: 'NO_SPACE' });
    expect(files.bytes('a')).toEqual(old);
    expect(files.names()).toEqual(['a']);
    expect(files.open).toEqual([]);
    failing = false;
    await make(files, 'a', { size: 64 * KiB });
    expect(files.names()).toEqual(['a']);
    await using image = await open(files, 'a');
    expect(image.format).toBe('qcow2');
  });

  it('exclusive: leaves an existing file alone', async () => {
    const files = new MemoryFiles();
    files.add('a', Uint8Array.of(1));
    await expect(make(files, 'a', { size: 512, exclusive: true })).rejects.toMatchObject({ code: 'EXISTS' });
    expect(files.bytes('a')).toEqual(Uint8Array.of(1));
  });

  it('writes into a store that is given, and leaves it open', async () => {
    const store = new MemoryStore();
    await createImage(store, { ...drivers(new MemoryFiles()), format: 'qcow2', size: 64 * KiB });
    expect(store.closed).toBe(false);
    expect(store.size).toBeGreaterThan(0);
  });

  it('creates the data file that its options name, beside itself', async () => {
    const files = new MemoryFiles();
    await make(files, 'dir/a', { size: 64 * KiB, options: { dataFile: 'a.data' } }, [[0, 512, 9]]);
    expect(files.names()).toEqual(['dir/a', 'dir/a.data']);
    expect(files.open).toEqual([]);
    expect(files.bytes('dir/a.data')[0]).toBe(9);
  });

  it('removes a data file that it made when creation fails later, and keeps one that was there (Q-142)', async () => {
    for (const there of [false, true]) {
      const files = new MemoryFiles({
        wrap: (node, name) => new FaultStore(node, name.includes('.part') ? [{ on: 'write', always: true }] : []),
      });
      if (there) files.add('a.data', new Uint8Array(512));
      await expect(make(files, 'a', { size: 64 * KiB, options: { dataFile: 'a.data' } })).rejects.toMatchObject({
        code: 'IO',
      });
      expect(files.names()).toEqual(there ? ['a.data'] : []);
      expect(files.open).toEqual([]);
    }
  });

  it('refuses data files that the policy forbids, that are the image itself, or that are protected', async () => {
    const files = new MemoryFiles();
    const input = files.add('input', new Uint8Array(512));
    const data = (dataFile: string, more: Partial<CreateImageOptions> = {}) =>
      make(files, 'a', { size: 512, options: { dataFile }, ...more });
    await expect(data('x', { references: 'deny' })).rejects.toMatchObject({ code: 'REFERENCE_DENIED' });
    await expect(data('x', { references: 'layer-only' })).rejects.toMatchObject({ code: 'REFERENCE_DENIED' });
    await expect(data('a')).rejects.toMatchObject({ reason: 'create.same-name' });
    await expect(data('input', { protect: new Set([input.identity]) })).rejects.toMatchObject({
      reason: 'create.protected',
    });
    expect(files.names()).toEqual(['input']);
    expect(files.bytes('input')).toEqual(new Uint8Array(512));
  });

  it('is refused by protocols that cannot create', async () => {
    const { create: _, ...rest } = new MemoryFiles().protocol;
    await expect(
      createImage('a', { formats: FORMATS, protocols: [rest], format: 'raw', size: 512 }),
    ).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: 'target.create' });
  });
});
