/** The suite must find stores that break the contract: each mutant here breaks one rule. */
import { describe, expect, it } from 'vitest';
import type { Pending } from '../../src/base/async.ts';
import { yieldMacrotask } from '../../src/base/job.ts';
import type { ExtentList } from '../../src/core/extent.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { SliceStore } from '../../src/storage/slice.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { type StoreUnderTest, storeConformance } from '../../src/testing/store-suite.ts';

/** Runs the suite over a store; the names of the tests that failed. */
async function failures(create: () => StoreUnderTest): Promise<string[]> {
  const failed: string[] = [];
  const tests: [string, () => Promise<void>][] = [];
  storeConformance({
    name: 'mutant',
    describe: (_, body) => body(),
    it: (name, body) => tests.push([name, () => body()]),
    create,
    farOffset: 3 * 2 ** 32,
    longest: 600_000,
  });
  for (const [name, body] of tests) await body().catch(() => failed.push(name));
  return failed;
}

/** A memory store with some methods replaced; `inner` is the store that works. */
function mutant(change: (inner: MemoryStore) => Partial<BlockNode>, memory = new MemoryStore()): BlockNode {
  const changed = change(memory) as Record<PropertyKey, unknown>;
  return new Proxy<BlockNode>(memory, {
    get(target, key) {
      if (key in changed) return changed[key];
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

const MUTANTS: readonly (readonly [what: string, change: (inner: MemoryStore) => Partial<BlockNode>, found: string])[] =
  [
    ['does not read', () => ({ read: () => undefined }), 'a read gives what was written'],
    [
      'leaves bytes past the end as they were',
      (inner) => ({
        read: (offset, into) =>
          inner.read(offset, into.subarray(0, Math.max(0, Math.min(into.length, inner.size - offset)))),
      }),
      'bytes past the end read as zero',
    ],
    [
      'reads past its buffer',
      (inner) => ({
        read: (offset, into) => {
          const longer = Math.min(into.length + 1, into.buffer.byteLength - into.byteOffset);
          return inner.read(offset, new Uint8Array(into.buffer, into.byteOffset, longer));
        },
      }),
      'a read fills exactly its buffer, inside a larger one and in shared memory too',
    ],
    [
      'knows 32 bits of an offset',
      (inner) => ({ read: (offset, into) => inner.read(offset % 2 ** 32, into) }),
      'offsets beyond 4 GiB are exact',
    ],
    [
      'writes the first buffer only',
      (inner) => ({ writev: (offset, parts) => inner.writev(offset, parts.slice(0, 1)) }),
      'several buffers are written end to end',
    ],
    [
      'zeroes outwards to its pages',
      (inner) => ({
        writeZeroes: (offset, length) => {
          const start = offset - (offset % 4096);
          return inner.writeZeroes(start, offset + length - start);
        },
      }),
      'writeZeroes makes exactly its range read as zero',
    ],
    [
      'forgets to zero when it may unmap',
      (inner) => ({
        writeZeroes: (offset, length, options) =>
          options?.unmap === true ? undefined : inner.writeZeroes(offset, length),
      }),
      'writeZeroes with unmap makes exactly its range read as zero',
    ],
    [
      'does not grow by zeroes',
      (inner) => ({
        writeZeroes: (offset, length) => inner.writeZeroes(offset, Math.max(0, Math.min(length, inner.size - offset))),
      }),
      'writeZeroes past the end grows the store',
    ],
    [
      'fails fastOnly after zeroing',
      (inner) => ({
        writeZeroes: (offset, length, options) => {
          inner.writeZeroes(offset, length, options);
          return options?.fastOnly === true ? inner.truncate(-1) : undefined;
        },
      }),
      'fastOnly zeroes or answers UNSUPPORTED and changes nothing',
    ],
    [
      'discards outwards',
      (inner) => ({
        discard: (offset, length) => inner.writeZeroes(Math.max(0, offset - 1), Math.min(length + 1, inner.size)),
      }),
      'a discard leaves its neighbours alone and never changes the size',
    ],
    [
      'calls everything zero',
      () => ({ extents: (_offset: number, length: number, into: ExtentList) => void into.add(length, 3) }),
      'extents are contiguous, and what they call zero reads as zero',
    ],
    [
      'covers nothing when the list is small',
      (inner) => ({
        extents: (offset, length, into) => (into.capacity === 1 ? undefined : inner.extents(offset, length, into)),
      }),
      'extents stop when the list is full and go on from there',
    ],
    [
      'sees no holes',
      () => ({ extents: (_offset: number, length: number, into: ExtentList) => void into.add(length, 5) }),
      'holes are told from data',
    ],
    [
      'keeps what truncate cut off',
      (inner) => {
        let kept = new Uint8Array(0);
        return {
          truncate: (size, options) => {
            if (size < inner.size && size > 0) kept = inner.bytes().slice(size);
            const before = inner.size;
            inner.truncate(size, options);
            return size > before && kept.length > 0 ? inner.write(before, kept.subarray(0, size - before)) : undefined;
          },
        };
      },
      'truncate cuts off, and growing again shows zeros',
    ],
    [
      'preallocates what it cuts',
      (inner) => ({ truncate: (size) => inner.truncate(size) }),
      'preallocation when shrinking is refused',
    ],
    [
      'fills what it preallocates',
      (inner) => ({
        truncate: (size, options) => {
          const before = inner.size;
          inner.truncate(size);
          if (size < before || options?.preallocation !== 'full') return undefined;
          return inner.write(before, new Uint8Array(size - before).fill(1));
        },
      }),
      'preallocation changes no content',
    ],
    [
      'transfers half of a long request',
      (inner) => ({ write: (offset, from) => inner.write(offset, from.subarray(0, 512 * 1024)) }),
      'a long request is carried out whole',
    ],
    [
      'claims to be synchronous',
      (inner) => ({ flush: () => undefined, read: (o, i) => later(() => inner.read(o, i)) }),
      'a store that claims sync answers without promises',
    ],
    [
      'accepts negative offsets',
      (inner) => ({ discard: (offset, length) => (offset < 0 ? undefined : inner.discard(offset, length)) }),
      'negative, fractional and oversized ranges are refused with OUT_OF_RANGE',
    ],
    [
      'fails with plain errors',
      (inner) => ({
        read: (offset, into) => {
          if (!(offset >= 0)) throw new RangeError('offset');
          return inner.read(offset, into);
        },
      }),
      'negative, fractional and oversized ranges are refused with OUT_OF_RANGE',
    ],
    [
      'reads after close',
      (inner) => ({ read: (offset, into) => (inner.closed ? undefined : inner.read(offset, into)) }),
      'after close every call is refused with CLOSED, and close is idempotent',
    ],
    [
      'loses the size after opening again',
      () => ({ close: () => Promise.resolve() }),
      'what was written is there after closing and opening again',
    ],
  ];

function later(body: () => Pending): Pending {
  return yieldMacrotask().then(body);
}

/** Grows by setting the size, whatever runs. */
function racing(late: LateStore): BlockNode {
  return new Proxy<BlockNode>(late, {
    get(target, key) {
      if (key === 'writeZeroes') {
        return async (offset: number, length: number): Promise<void> => {
          if (offset + length > target.size) await target.truncate(offset + length);
          else await target.writeZeroes(offset, length);
        };
      }
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

describe('the store suite', () => {
  it('passes a store that keeps the contract', async () => {
    const memory = (): StoreUnderTest => {
      const store = new MemoryStore();
      return { store, reopen: (readOnly) => store.reopen({ readOnly }) };
    };
    expect(await failures(memory)).toEqual([]);
  });

  for (const [what, change, found] of MUTANTS) {
    it(`finds a store that ${what}`, async () => {
      const failed = await failures(() => {
        const memory = new MemoryStore();
        return { store: mutant(change, memory), reopen: (readOnly) => memory.reopen({ readOnly }) };
      });
      expect(failed).toContain(found);
    });
  }

  it('finds a store of fixed size that lets a write pass its end', async () => {
    const failed = await failures(() => {
      const memory = new MemoryStore({ size: 300_000 });
      const slice = new SliceStore(memory, { offset: 0, size: 280_000 });
      const loose = mutant(
        () => ({ write: (offset: number, from: Uint8Array) => memory.write(offset, from), supports: slice.supports }),
        memory,
      );
      return { store: loose };
    });
    expect(failed).toContain('a request past the end is refused with OUT_OF_RANGE where the size is fixed');
  });

  it('finds a store that grows by setting the size while writes past it run, in some order of events', async () => {
    const failed: string[] = [];
    for (const seed of [1, 2, 3, 4]) {
      failed.push(...(await failures(() => ({ store: racing(new LateStore({ seed, pieceSize: 0 })) }))));
    }
    expect(failed).toContain('growing from both ends at once loses nothing');
  });

  it('finds a store whose requests are not over when it is closed', async () => {
    const failed = await failures(() => {
      const memory = new MemoryStore();
      const store = mutant(
        (inner) => ({
          write: (offset, from) =>
            from.length < 4000 ? later(() => inner.write(offset, from)) : inner.write(offset, from),
        }),
        memory,
      );
      return { store, reopen: (readOnly) => memory.reopen({ readOnly }) };
    });
    expect(failed).toContain('what was written is there after closing and opening again');
  });
});
