/** The format suite finds what is wrong with a format: each case here breaks one promise of a good one. */
import { describe, expect, it } from 'vitest';
import { createCodecs } from '../../src/codec/create.ts';
import { EXTENT } from '../../src/core/extent.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { createByDriver, formatConformance } from '../../src/testing/format-suite.ts';
import { bitmap } from '../support/bitmap-driver.ts';

type Break = (disk: BlockNode, readOnly: boolean) => Partial<BlockNode>;

/** Names of the suite's tests that fail when the disk has some of its methods replaced. */
async function failures(broken: Break): Promise<string[]> {
  const create = createByDriver({
    driver: bitmap,
    codecs: createCodecs({ workers: 0 }),
    createOptions: (backing) => ({ hasBacking: backing !== undefined }),
  });
  const wrap = (disk: BlockNode, readOnly: boolean): BlockNode => {
    const replaced = broken(disk, readOnly);
    return new Proxy(disk, {
      get: (target, key) => {
        const value = (replaced as Record<PropertyKey, unknown>)[key] ?? Reflect.get(target, key, target);
        return typeof value === 'function' ? (value as (...args: unknown[]) => unknown).bind(target) : value;
      },
    });
  };
  const tests: [string, () => Promise<void>][] = [];
  formatConformance({
    name: 'broken',
    abilities: { backing: true, compress: true, discard: 'zeroes' },
    unit: 1024,
    steps: 60,
    largeSize: 2 ** 20,
    describe: (_name, body) => body(),
    it: (name, body) => void tests.push([name, body]),
    create: async (size, backing) => {
      const image = await create(size, backing);
      return {
        ...image,
        disk: wrap(image.disk, false),
        reopen: async (readOnly) => wrap(await image.reopen(readOnly), readOnly),
      };
    },
  });
  const failed: string[] = [];
  for (const [name, body] of tests) {
    try {
      await body();
    } catch (error) {
      expect((error as Error).message).toContain('broken, seed 1: ');
      failed.push(name);
    }
  }
  return failed;
}

describe('the format suite', () => {
  it('finds nothing wrong with a good format', async () => {
    expect(await failures(() => ({}))).toEqual([]);
  });

  it.each<[string, Break]>([
    [
      'loses the last byte of long writes',
      (disk) => ({
        write: (at, from, options) => disk.write(at, from.length > 900 ? from.subarray(0, -1) : from, options),
      }),
    ],
    [
      'writes one byte too early near the end',
      (disk) => ({ write: (at, from, options) => disk.write(at > 9000 ? at - 1 : at, from, options) }),
    ],
    [
      'leaves buffers as they were for reads of zeros',
      (disk) => ({
        read: (at, into, options) => (at === disk.size - into.length ? undefined : disk.read(at, into, options)),
      }),
    ],
    [
      'zeroes whole units only',
      (disk) => ({ writeZeroes: (at, length, options) => disk.writeZeroes(at - (at % 1024), length, options) }),
    ],
    ['does not zero', () => ({ writeZeroes: () => undefined })],
    ['discards more than whole units', (disk) => ({ discard: (at, length) => disk.writeZeroes(at, length) })],
    ['does not discard', () => ({ discard: () => undefined })],
    [
      'calls everything zero',
      () => ({
        extents: (_at, length, into) => {
          into.add(length, EXTENT.zero);
          return undefined;
        },
      }),
    ],
    ['tells the status of nothing', () => ({ extents: () => undefined })],
    ['lets read-only images be written', (_disk, readOnly) => (readOnly ? { write: () => undefined } : {})],
    ['says a wrong size', (disk) => ({ size: disk.size + 512 })],
    [
      'refuses no bytes at the end',
      (disk) => ({ read: (at, into) => (into.length === 0 ? Promise.reject(new Error('no')) : disk.read(at, into)) }),
    ],
    [
      'ignores signals',
      (disk) => ({
        write: (at, from, options) => disk.write(at, from, options?.compressed === true ? { compressed: true } : {}),
      }),
    ],
    ['fails to flush', () => ({ flush: () => Promise.reject(new Error('no')) })],
    [
      'spoils its first bytes when it is closed',
      (disk) => ({
        close: async () => {
          if (disk.supports.write)
            await Promise.resolve(disk.write(0, new Uint8Array([1, 2, 3]))).catch(() => undefined);
          await disk.close();
        },
      }),
    ],
  ])('notices a disk that %s', async (_what, broken) => {
    expect((await failures(broken)).length).toBeGreaterThan(0);
  });
});
