/** Encrypted images that are amended, resized, emptied and opened anew: zeros are encrypted like everything else. */
import { describe, expect, it } from 'vitest';
import type { CreateImageOptions } from '../../../src/image/create.ts';
import { createImage } from '../../../src/image/create.ts';
import { openImage } from '../../../src/image/open.ts';
import { checkImage } from '../../../src/tools/check.ts';
import { drivers, KiB, make } from '../../image/support/fixtures.ts';
import { MemoryFiles } from '../../image/support/memory-protocol.ts';
import { pattern } from '../../support/qcow2-parts.ts';

const METHODS: readonly (readonly [string, Record<string, unknown>])[] = [
  ['LUKS', { encryptFormat: 'luks', encryptKeySecret: 'key', encryptCipherAlg: 'aes-128', encryptIterTime: 0 }],
  ['the old method', { encryptFormat: 'aes', encryptKeySecret: 'key' }],
];
const SIZE = 100 * KiB + 512;

describe.each(METHODS)('an image encrypted by %s', (name, encryption) => {
  async function image(options: Partial<CreateImageOptions>, clusterSize = 4096) {
    const files = new MemoryFiles();
    const secrets = { key: 'horse' };
    const common = { ...drivers(files), secrets, references: 'allow' as const };
    await make(files, 'base', { size: 400 * KiB }, [[0, 400 * KiB, 9]]);
    await createImage('a', {
      ...common,
      format: 'qcow2',
      size: SIZE,
      options: { ...encryption, clusterSize, ...options.options },
      backing: { name: 'base', format: 'qcow2' },
    });
    const open = () => openImage('a', { ...common, readOnly: false, options: { encryptKeySecret: 'key' } });
    return { files, open, common };
  }

  it.each(['off', 'metadata', 'full'] as const)('shows zeros where it grows, with preallocation %s', async (mode) => {
    const { open, common } = await image({});
    await using disk = await open();
    await disk.write(1000, pattern(99 * KiB));
    const wanted = new Uint8Array(300 * KiB);
    wanted.fill(9, 0, SIZE).set(pattern(99 * KiB), 1000);
    await disk.resize(300 * KiB, { preallocation: mode });
    expect(Buffer.compare(await disk.read(0, 300 * KiB), wanted)).toBe(0);
    await disk.write(150 * KiB, pattern(3000, 3));
    wanted.set(pattern(3000, 3), 150 * KiB);
    await disk.resize(151 * KiB, { shrink: true });
    await disk.resize(300 * KiB);
    wanted.fill(0, 151 * KiB);
    await disk.reopen({ readOnly: true });
    expect(Buffer.compare(await disk.read(0, 300 * KiB), wanted)).toBe(0);
    await disk.close();
    expect((await checkImage('a', common)).result).toMatchObject({ corruptions: 0, leaks: 0 });
  });

  it('shows the same in another version, with other refcounts, and when it is emptied', async () => {
    const { open, common } = await image({});
    await using disk = await open();
    await disk.write(0, pattern(60 * KiB));
    await disk.writeZeroes(10 * KiB, 30 * KiB);
    await disk.writeZeroes(70 * KiB, 20 * KiB);
    const before = await disk.read(0, SIZE);
    await disk.amend({ refcountBits: 64 });
    await disk.amend({ refcountBits: 16, compat: 'v2' });
    expect(Buffer.compare(await disk.read(0, SIZE), before)).toBe(0);
    await disk.amend({ compat: 'v3' });
    await disk.invalidate();
    expect(Buffer.compare(await disk.read(0, SIZE), before)).toBe(0);
    await disk.node.makeEmpty();
    expect(new Set(await disk.read(0, SIZE))).toEqual(new Set([9]));
    await disk.write(5000, pattern(5000));
    expect(Buffer.compare(await disk.read(5000, 5000), pattern(5000))).toBe(0);
    await disk.close();
    expect((await checkImage('a', common)).result).toMatchObject({ corruptions: 0, leaks: 0 });
    await using again = await open();
    expect(Buffer.compare(await again.read(5000, 5000), pattern(5000)), name).toBe(0);
  });
});
