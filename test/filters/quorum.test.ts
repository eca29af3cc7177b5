import { describe, expect, it } from 'vitest';
import { settleAll } from '../../src/base/async.ts';
import type { ImageEvent } from '../../src/core/format.ts';
import { quorum } from '../../src/filters/quorum-driver.ts';
import { versionsOf, winnerOf } from '../../src/filters/quorum-vote.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { everySeed } from '../support/seeds.ts';
import { bytesOf, expectSame, failureOf, filled, openFilter, statusText } from './support.ts';

const SIZE = 65_536;

/** Memory stores filled with one byte each. */
function stores(...bytes: readonly number[]): MemoryStore[] {
  return bytes.map((byte, i) => MemoryStore.from(filled(byte, SIZE), { name: `child${i}`, pageSize: 4096 }));
}

function reasons(events: readonly ImageEvent[]): string[] {
  return events.map((event) => (event.type === 'warning' ? `${event.reason}: ${event.message}` : event.type));
}

describe('a vote', () => {
  const winner = (votes: readonly (number | undefined)[]) => winnerOf(versionsOf(votes, (a, b) => a === b))?.voters;

  it('goes to the version that most have', () => {
    expect(winner([1, 2, 1])).toEqual([0, 2]);
    expect(winner([undefined, 2, 2, 3])).toEqual([1, 2]);
    expect(winner([undefined])).toBeUndefined();
  });

  it('goes to the version that turned up last where several have as many', () => {
    expect(winner([1, 2])).toEqual([1]);
    expect(winner([1, 2, 1, 2, 3])).toEqual([1, 3]);
  });
});

describe('quorum', () => {
  const refusals: readonly (readonly [reason: string, children: number, options: Readonly<Record<string, unknown>>])[] =
    [
      ['quorum.children', 0, { voteThreshold: 1 }],
      ['quorum.threshold', 3, {}],
      ['quorum.threshold', 3, { voteThreshold: 2 ** 31 }],
      ['quorum.threshold-high', 3, { voteThreshold: 4 }],
      ['quorum.blkverify', 3, { voteThreshold: 2, blkverify: true }],
      ['quorum.blkverify', 2, { voteThreshold: 1, blkverify: true }],
      ['quorum.blkverify-rewrite', 2, { voteThreshold: 2, blkverify: true, rewriteCorrupted: true }],
    ];
  for (const [reason, count, options] of refusals) {
    it(`of ${count} children with ${JSON.stringify(options)} is refused: ${reason}`, async () => {
      const children = stores(...new Array<number>(count).fill(1));
      expect(await failureOf(() => openFilter(quorum, { children }, options))).toMatchObject({
        code: 'OPTION',
        reason,
      });
    });
  }

  it('refuses children of several sizes, and rewriting where nothing can be written', async () => {
    const children = [...stores(1, 1), new MemoryStore({ size: 512 })];
    expect(await failureOf(() => openFilter(quorum, { children }, { voteThreshold: 2 }))).toMatchObject({
      reason: 'quorum.sizes',
      details: { errno: 'EIO' },
    });
    const same = stores(1, 1);
    const rewrite = { voteThreshold: 2, rewriteCorrupted: true };
    const readOnly = { readOnly: true };
    expect(await failureOf(() => openFilter(quorum, { children: same }, rewrite, readOnly))).toMatchObject({
      code: 'READ_ONLY',
    });
    // Nobody is asked to vote, so nothing would be rewritten.
    const fifo = { ...rewrite, readPattern: 'fifo' };
    await openFilter(quorum, { children: same }, fifo, readOnly);
  });

  it('reads what enough of them agree on, and tells of the others', async () => {
    const events: ImageEvent[] = [];
    const children = stores(1, 2, 1);
    const node = await openFilter(quorum, { children }, { voteThreshold: 2 }, { events });
    expect(await bytesOf(node, 100, 500)).toEqual(filled(1, 500));
    expect(reasons(events)).toEqual([
      'quorum.child: quorum "top": child "child1": read of 500 bytes at 0x64: holds something else than the others',
    ]);
    expect(children[1]?.bytes()[100]).toBe(2);
  });

  it('reads nothing where too few agree', async () => {
    const events: ImageEvent[] = [];
    const node = await openFilter(quorum, { children: stores(1, 2, 3) }, { voteThreshold: 2 }, { events });
    expect(await failureOf(() => bytesOf(node))).toMatchObject({ code: 'IO', reason: 'quorum.failure' });
    expect(reasons(events)).toHaveLength(1);
    const all = await openFilter(quorum, { children: stores(1, 2, 1) }, { voteThreshold: 3 });
    expect(await failureOf(() => bytesOf(all))).toMatchObject({ details: { errno: 'EIO', offset: 0, length: SIZE } });
  });

  it('rewrites what was outvoted, and only where it was read', async () => {
    const children = stores(1, 2, 1);
    const node = await openFilter(quorum, { children }, { voteThreshold: 2, rewriteCorrupted: true });
    await bytesOf(node, 512, 512);
    const expected = filled(2, SIZE);
    expected.fill(1, 512, 1024);
    expect(children[1]?.bytes()).toEqual(expected);
  });

  it('that cannot rewrite a child gives the right bytes all the same', async () => {
    const events: ImageEvent[] = [];
    const [a, b, c] = stores(1, 2, 1) as [MemoryStore, MemoryStore, MemoryStore];
    const bad = new FaultStore(b);
    bad.fail({ on: 'write', always: true });
    const node = await openFilter(
      quorum,
      { children: [a, bad, c] },
      { voteThreshold: 2, rewriteCorrupted: true },
      { events },
    );
    expectSame(await bytesOf(node), filled(1, SIZE));
    expect(reasons(events)).toHaveLength(2);
  });

  it('with blkverify names the first byte that differs', async () => {
    const children = stores(1, 1);
    await children[1]?.write(5003, filled(9, 3));
    const node = await openFilter(quorum, { children }, { voteThreshold: 2, blkverify: true });
    expect(await bytesOf(node, 0, 4096)).toEqual(filled(1, 4096));
    expect(await failureOf(() => bytesOf(node, 4096, 4096))).toMatchObject({
      reason: 'quorum.mismatch',
      details: { offset: 4096, length: 4096, at: 5003 },
    });
  });

  it('reads the first child that answers with read-pattern fifo', async () => {
    const events: ImageEvent[] = [];
    const [a, b, c] = stores(1, 2, 3) as [MemoryStore, MemoryStore, MemoryStore];
    const bad = new FaultStore(a);
    const options = { voteThreshold: 3, readPattern: 'fifo' };
    const node = await openFilter(quorum, { children: [bad, b, c] }, options, { events });
    expect(await bytesOf(node, 0, 512)).toEqual(filled(1, 512));
    bad.fail({ on: 'read', always: true });
    expect(await bytesOf(node, 0, 512)).toEqual(filled(2, 512));
    expect(reasons(events)).toHaveLength(1);
  });

  it('writes to all, and succeeds where enough of them do', async () => {
    const events: ImageEvent[] = [];
    const [a, b, c] = stores(1, 1, 1) as [MemoryStore, MemoryStore, MemoryStore];
    const bad = new FaultStore(b);
    bad.fail({ on: ['write', 'zeroes', 'flush'], always: true, errno: 'ENOSPC' });
    const node = await openFilter(quorum, { children: [a, bad, c] }, { voteThreshold: 2 }, { events });
    await node.write(0, filled(5, 512));
    await node.writeZeroes(512, 512);
    await node.flush();
    expect(reasons(events)).toHaveLength(3);
    for (const store of [a, c])
      expect(await bytesOf(store, 0, 1024)).toEqual(Uint8Array.from([...filled(5, 512), ...filled(0, 512)]));
    expect(await bytesOf(node, 0, 512)).toEqual(filled(5, 512));
  });

  it('fails with what most of them failed with', async () => {
    const children = stores(1, 1, 1).map((store, i) => {
      const fault = new FaultStore(store);
      fault.fail({ on: ['write', 'read', 'flush'], always: true, errno: i === 0 ? 'EIO' : 'ENOSPC' });
      return fault;
    });
    const node = await openFilter(quorum, { children }, { voteThreshold: 2 });
    for (const request of [() => node.write(0, filled(1, 512)), () => bytesOf(node, 0, 512), () => node.flush()]) {
      expect(await failureOf(request)).toMatchObject({ details: { errno: 'ENOSPC' } });
    }
  });

  it('is zero where all are, and data where one is', async () => {
    const children = stores(1, 1);
    await children[0]?.writeZeroes(0, 32_768);
    await children[1]?.writeZeroes(0, 16_384);
    const node = await openFilter(quorum, { children }, { voteThreshold: 1 });
    expect(await statusText(node)).toBe('zero 0+16384, data 16384+49152');
    expect(await node.status?.()).toEqual({ allocatedBytes: 32_768 + 49_152 });
  });

  it('zeroes what is discarded, so that all of them agree', async () => {
    const children = stores(1, 1, 1);
    const node = await openFilter(quorum, { children }, { voteThreshold: 3 });
    await node.discard(1000, 10_000);
    const expected = filled(1, SIZE);
    expected.fill(0, 1000, 11_000);
    expect(await bytesOf(node)).toEqual(expected);
  });

  it('zeroes in full where one child alone could not do it quickly', async () => {
    const [a, b] = stores(1, 1) as [MemoryStore, MemoryStore];
    const slow = new FaultStore(b);
    slow.fail({ on: 'zeroes', errno: 'EOPNOTSUPP' });
    const node = await openFilter(quorum, { children: [a, slow] }, { voteThreshold: 2 });
    await node.writeZeroes(0, 8192, { fastOnly: true });
    expect(await bytesOf(node, 0, 8192)).toEqual(new Uint8Array(8192));
  });

  it('grows with what is written behind its end, on all children', async () => {
    const children = stores(1, 1);
    const node = await openFilter(quorum, { children }, { voteThreshold: 2 });
    await node.write(SIZE + 100, filled(3, 100));
    await node.truncate(SIZE + 4096);
    expect([node.size, ...children.map(({ size }) => size)]).toEqual([SIZE + 4096, SIZE + 4096, SIZE + 4096]);
  });

  it('gives every child the same, whatever overlaps and however late they are', async () => {
    await everySeed(12, async (seed) => {
      const random = seededRandom(seed);
      const memories = stores(1, 1, 1);
      const children = memories.map((store, i) => new LateStore({ seed: seed * 10 + i }, store));
      const events: ImageEvent[] = [];
      const node = await openFilter(quorum, { children }, { voteThreshold: 3, rewriteCorrupted: true }, { events });
      const pendings: (Promise<void> | undefined)[] = [];
      for (let i = 0; i < 60; i++) {
        const offset = below(random, 16_384);
        const length = 1 + below(random, 8192);
        if (i % 3 === 0) pendings.push(node.read(offset, new Uint8Array(length)));
        else if (i % 7 === 0) pendings.push(node.writeZeroes(offset, length));
        else pendings.push(node.write(offset, noise(random, length)));
      }
      await settleAll(pendings);
      // A vote that saw half of a write would have failed, or told of it.
      expect(reasons(events)).toEqual([]);
      expectSame(memories[1]?.bytes() as Uint8Array, memories[0]?.bytes() as Uint8Array);
      expectSame(memories[2]?.bytes() as Uint8Array, memories[0]?.bytes() as Uint8Array);
    });
  });
});
