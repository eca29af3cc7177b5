/** The checksum of a disk: what it is, and that nothing but the disk changes it. */
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { describe, expect, it, vi } from 'vitest';
import type { Codecs } from '../../src/codec/codecs.ts';
import { createCodecs } from '../../src/codec/create.ts';
import * as node from '../../src/node.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { CHECKSUM_BLOCK, checksumImage } from '../../src/tools/checksum.ts';
import { convertImage } from '../../src/tools/convert.ts';
import { contentOf, drivers, KiB, MiB, make, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';
import { scratch } from '../support/scratch.ts';

const sha = (...parts: Uint8Array[]): Buffer => {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
};

/** The definition, word by word. */
function defined(disk: Uint8Array): string {
  const leaf = (block: Uint8Array): Buffer => {
    const whole = new Uint8Array(CHECKSUM_BLOCK);
    whole.set(block);
    return sha(Uint8Array.of(0), whole);
  };
  let level: Buffer[] = [];
  for (let at = 0; at < disk.length; at += CHECKSUM_BLOCK) level.push(leaf(disk.subarray(at, at + CHECKSUM_BLOCK)));
  while (level.length === 0 || !Number.isInteger(Math.log2(level.length))) level.push(leaf(new Uint8Array(0)));
  while (level.length > 1) {
    const pairs: Buffer[] = [];
    for (let i = 0; i < level.length; i += 2)
      pairs.push(sha(Uint8Array.of(1), level[i] as Buffer, level[i + 1] as Buffer));
    level = pairs;
  }
  const size = Buffer.alloc(8);
  size.writeBigUInt64BE(BigInt(disk.length));
  return sha(Uint8Array.of(2), size, level[0] as Buffer).toString('hex');
}

function scattered(seed: number, size: number): MemoryStore {
  const random = seededRandom(seed);
  const store = new MemoryStore({ size, pageSize: 4096 });
  for (let i = 0; i < 12; i++) {
    const length = 1 + below(random, 300 * KiB);
    void store.write(below(random, size - length), noise(random, length));
  }
  return store;
}

describe('the checksum of a disk', () => {
  it.each([1, 512, MiB - 1, MiB, MiB + 1, 5 * MiB + 100, 16 * MiB])('of %d bytes is what is defined', async (size) => {
    const files = new MemoryFiles();
    files.add('a', size < 400 * KiB ? new MemoryStore({ size }) : scattered(size, size));
    await using image = await open(files, 'a', { format: 'raw' });
    const { hash, virtualSize, algorithm } = await checksumImage(image);
    expect([virtualSize, algorithm]).toEqual([image.virtualSize, 'cowdisk-1-sha256']);
    expect(hash).toBe(defined(await contentOf(image)));
  });

  it('of an empty disk is that of no blocks', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(0));
    await using image = await open(files, 'a', { format: 'raw' });
    expect((await checksumImage(image)).hash).toBe(defined(new Uint8Array(0)));
  });

  it('is the same in every format, allocation and layer, over files that answer in any order, on any number of threads', async () => {
    let late = false;
    let seed = 1;
    const files = new MemoryFiles({ wrap: (node) => (late ? new LateStore({ seed: seed++ }, node) : node) });
    files.add('a', scattered(9, 7 * MiB + 512));
    const wanted = defined(await contentOf(await open(files, 'a', { format: 'raw' })));
    const from = { name: 'a', format: 'raw' };
    const tools = { ...drivers(files), references: 'allow' } as const;
    await convertImage([from], { name: 'b', format: 'qcow2', options: { clusterSize: 512 } }, tools);
    await convertImage([from], { name: 'c', format: 'qcow2' }, { ...tools, compressed: true });
    await convertImage([from], { name: 'd', format: 'qcow2' }, { ...tools, sparseSize: 0 });
    await make(files, 'e', { format: 'qcow2', backing: { name: 'b', format: 'qcow2' } });
    late = true;
    for (const [name, format] of [
      ['a', 'raw'],
      ['b', 'qcow2'],
      ['c', 'qcow2'],
      ['d', 'qcow2'],
      ['e', 'qcow2'],
    ] as const) {
      for (const workers of [0, 2]) {
        const codecs = createCodecs({ workers, delayMs: 3 });
        await using image = await open(files, name, { format, references: 'allow' });
        expect((await checksumImage(image, { codecs })).hash, `${name}, ${workers} threads`).toBe(wanted);
        await codecs.close();
      }
    }
  });

  it('changes with any byte, and with the size', async () => {
    const files = new MemoryFiles();
    files.add('a', scattered(4, 3 * MiB));
    const seen = new Set<string>();
    await using image = await open(files, 'a', { format: 'raw', readOnly: false });
    seen.add((await checksumImage(image)).hash);
    for (const at of [0, MiB - 1, MiB, 3 * MiB - 1]) {
      const [byte] = await image.read(at, 1);
      await image.write(at, Uint8Array.of((byte as number) + 1));
      seen.add((await checksumImage(image)).hash);
    }
    await image.node.truncate(3 * MiB + 512);
    seen.add((await checksumImage(image)).hash);
    expect(seen.size).toBe(6);
  });

  it('does not read what is known to be zero, and takes a disk of petabytes', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { format: 'qcow2', size: 2 ** 50, options: { clusterSize: 2 * MiB } });
    await using image = await open(files, 'a', { readOnly: false });
    await image.write(2 ** 49 + 12345, Uint8Array.of(1));
    const reads = vi.spyOn(image.node, 'read');
    const { read } = await checksumImage(image);
    expect(read).toBeLessThanOrEqual(2 * MiB);
    expect(reads).toHaveBeenCalledTimes(1);
  });

  it('tells its progress, and ends when it is aborted', async () => {
    const files = new MemoryFiles();
    files.add('a', scattered(4, 64 * MiB));
    await using image = await open(files, 'a', { format: 'raw' });
    const done: number[] = [];
    await checksumImage(image, { onProgress: (progress) => done.push(progress.done) });
    expect(done).toEqual(done.toSorted((a, b) => a - b));
    expect(done.at(-1)).toBe(64 * MiB);
    const stop = new AbortController();
    const running = checksumImage(image, { signal: stop.signal, onProgress: () => stop.abort() });
    await expect(running).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('fails as reading fails, when everything that ran has ended', async () => {
    let fault: FaultStore | undefined;
    const files = new MemoryFiles({
      wrap: (node) => {
        fault = new FaultStore(new LateStore({ seed: 3 }, node));
        return fault;
      },
    });
    files.add('a', new Uint8Array(20 * MiB).fill(1));
    await using image = await open(files, 'a', { format: 'raw' });
    fault?.fail({ on: 'read', nth: 3, late: true });
    await expect(checksumImage(image)).rejects.toMatchObject({ code: 'IO' });
  });
});

describe('files that workers read by themselves', () => {
  const path = scratch();
  const SIZE = 24 * MiB + 512 * 3;

  /** The disk as a raw file and as qcow2, and its checksum by one thread. */
  async function disks(): Promise<{ readonly names: readonly string[]; readonly hash: string }> {
    const random = seededRandom(11);
    const bytes = new Uint8Array(SIZE);
    for (let at = 0; at < SIZE; at += 4096) bytes.fill(1 + below(random, 255), at, at + below(random, 4096));
    bytes.fill(0, 3 * MiB, 8 * MiB);
    const [raw, qcow2] = [path('disk.raw'), path('disk.qcow2')];
    writeFileSync(raw, bytes);
    await node.convertImage({ name: raw, format: 'raw' }, { name: qcow2, format: 'qcow2' });
    return { names: [raw, qcow2], hash: await hashOf(raw, createCodecs({ workers: 0 })) };
  }

  async function hashOf(name: string, codecs: Codecs, readOnly = true): Promise<string> {
    await using image = await node.openImage(name, { format: name.endsWith('raw') ? 'raw' : 'qcow2', readOnly });
    return (await checksumImage(image, { codecs })).hash;
  }

  it('have the same checksum, and one that may change meanwhile is read the usual way', async () => {
    const { names, hash } = await disks();
    const codecs = createCodecs({ workers: 2 });
    let direct = 0;
    const watched: Codecs = {
      ...bound(codecs),
      digestsOfFile: (...args) => {
        const taken = codecs.digestsOfFile(...args);
        if (taken !== undefined) direct++;
        return taken;
      },
    };
    try {
      // The first bytes are hashed before any thread is started.
      await codecs.digests(new Uint8Array(MiB * 32), MiB, 0);
      for (const name of names) {
        direct = 0;
        expect(await hashOf(name, watched)).toBe(hash);
        expect(direct).toBeGreaterThan(2);
        direct = 0;
        expect(await hashOf(name, watched, false)).toBe(hash);
        expect(direct).toBe(0);
      }
    } finally {
      await codecs.close();
    }
  });

  it('are read no further than the layer decides: an overlay begins anywhere in a block', async () => {
    const [base, top] = [path('base.raw'), path('top.qcow2')];
    writeFileSync(base, noise(seededRandom(5), SIZE));
    await node.createImage(top, { format: 'qcow2', backing: { name: base, format: 'raw' } });
    await using overlay = await node.openImage(top, { readOnly: false, references: 'allow' });
    const random = seededRandom(6);
    for (let i = 0; i < 6; i++) {
      await overlay.write(below(random, SIZE - 256 * KiB), noise(random, 1 + below(random, 200 * KiB)));
    }
    const { hash } = await checksumImage(overlay, { codecs: createCodecs({ workers: 0 }) });
    await overlay.close();
    const codecs = createCodecs({ workers: 2 });
    try {
      await codecs.digests(new Uint8Array(MiB * 32), MiB, 0);
      await using image = await node.openImage(top, { references: 'allow' });
      expect((await checksumImage(image, { codecs })).hash).toBe(hash);
    } finally {
      await codecs.close();
    }
  });

  it('are read once more by the image where a worker fails', async () => {
    const { names, hash } = await disks();
    const codecs = createCodecs({ workers: 2 });
    let calls = 0;
    const failing: Codecs = {
      ...bound(codecs),
      digestsOfFile: (...args) =>
        calls++ % 2 === 0 ? Promise.reject(new Error('not today')) : codecs.digestsOfFile(...args),
    };
    try {
      await codecs.digests(new Uint8Array(MiB * 32), MiB, 0);
      for (const name of names) expect(await hashOf(name, failing)).toBe(hash);
      expect(calls).toBeGreaterThan(2);
    } finally {
      await codecs.close();
    }
  });
});

function bound(codecs: Codecs): Codecs {
  return {
    workers: codecs.workers,
    compress: (...args) => codecs.compress(...args),
    decompress: (...args) => codecs.decompress(...args),
    sectors: (...args) => codecs.sectors(...args),
    digests: (...args) => codecs.digests(...args),
    digestsOfFile: (...args) => codecs.digestsOfFile(...args),
    close: () => codecs.close(),
  };
}
