/** Deltas: that applying one makes the one disk of the other, whatever they lie in, and what is done with the wrong disk, the wrong size, a
 *  failure and a power cut in the middle. Damaged deltas are in delta-hostile.test.ts. */
import { describe, expect, it } from 'vitest';
import { createCodecs } from '../../src/codec/create.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { createImage } from '../../src/image/create.ts';
import type { Image } from '../../src/image/image.ts';
import { openImage } from '../../src/image/open.ts';
import { ForwardSink } from '../../src/storage/forward-sink.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { RecordingStore, WriteLog } from '../../src/testing/recording-store.ts';
import { type ApplyOptions, applyDelta } from '../../src/tools/apply.ts';
import { writeDelta } from '../../src/tools/delta.ts';
import { contentOf, drivers, KiB, MiB, make, makeOverlay, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';
import { cutStates } from '../support/cuts.ts';
import { madeDelta, piped } from '../support/delta-files.ts';
import { type DiskPair, makePair, type NamedDisk, openDisk, toolsOf } from '../support/disk-pairs.ts';
import { everySeed } from '../support/seeds.ts';

/** An image that holds what the first disk of the pair holds, to be written to. */
async function target({ files, a }: DiskPair, kind: number): Promise<NamedDisk> {
  files.add('target.raw', a.content.slice());
  const disk = { name: 'target.raw', format: 'raw', content: a.content };
  if (kind === 0) return disk;
  const overlay = { name: 'target.qcow2', format: 'qcow2', content: a.content };
  const over = kind === 1 || a.snapshot !== undefined ? disk : a;
  await createImage(overlay.name, {
    ...toolsOf(files),
    format: 'qcow2',
    backing: { name: over.name, format: over.format },
  });
  return overlay;
}

async function deltaOf(files: MemoryFiles, a: string, b: string, options = {}) {
  await using first = await open(files, a, { references: 'allow' });
  await using second = await open(files, b, { references: 'allow' });
  return await madeDelta(first, second, options);
}

async function applied(files: MemoryFiles, name: string, delta: Uint8Array, options: ApplyOptions = {}) {
  await using image = await open(files, name, { readOnly: false, references: 'allow' });
  return await applyDelta(image, MemoryStore.from(delta), options);
}

/** Two small disks with changed, filled and cleared parts. */
async function twoDisks(sizes: readonly [number, number] = [MiB, MiB], format = 'qcow2'): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  await make(files, 'old', { format, size: sizes[0] }, [
    [0, 300 * KiB, 1],
    [600 * KiB, 20 * KiB, 2],
  ]);
  await make(files, 'new', { format, size: sizes[1] }, [
    [0, 300 * KiB, 1],
    [64 * KiB, 3000, 9],
    [200 * KiB, 50 * KiB, 0],
    [500 * KiB, 5 * KiB, 4],
  ]);
  return files;
}

describe('a delta', () => {
  it('makes the new disk of the old one, from any images into any images, through files and pipes', async () => {
    await everySeed(16, async (seed) => {
      const random = seededRandom(seed + 1_000_000);
      const pair = await makePair(seed, 200 * KiB);
      const { files, what, a, b } = pair;
      const checksums = random() < 0.8;
      const made = await (async () => {
        await using first = await openDisk(files, a);
        await using second = await openDisk(files, b);
        const compression = (['none', 'deflate', 'zstd'] as const)[below(random, 3)];
        return await madeDelta(first, second, { compression, checksums, block: 2 ** below(random, 17) });
      })();
      expect(made.result, what).toMatchObject({
        oldSize: a.content.length,
        newSize: b.content.length,
        fileSize: made.bytes.length,
      });
      const disk = await target(pair, below(random, 3));
      const source = (): MemoryStore | AsyncIterable<Uint8Array> =>
        random() < 0.5
          ? MemoryStore.from(made.bytes)
          : piped(made.bytes, () => below(random, random() < 0.5 ? 100 : 300 * KiB));
      {
        await using image = await openDisk(files, disk, { readOnly: false });
        const result = await applyDelta(image, source());
        const already = result.outcome === 'already';
        expect(result, what).toMatchObject({ verified: checksums, records: already ? 0 : made.result.records });
        if (already) expect(Buffer.compare(a.content, b.content), what).toBe(0);
        const again = await applyDelta(image, source(), { resume: !checksums });
        expect(again, what).toMatchObject({ outcome: checksums ? 'already' : 'applied', verified: checksums });
      }
      await using image = await openDisk(files, disk);
      expect(Buffer.compare(await contentOf(image), b.content), what).toBe(0);
    });
  });

  it('is the same file for any number of threads, into a store and into a pipe', async () => {
    const files = new MemoryFiles();
    files.add('old', new Uint8Array(6 * MiB));
    const bytes = new Uint8Array(6 * MiB);
    const random = seededRandom(5);
    for (let at = 0; at < 5 * MiB; at += 10_000) bytes.set(noise(random, below(random, 6000)), at);
    files.add('new', bytes);
    const whole = await deltaOf(files, 'old', 'new');
    const codecs = createCodecs({ workers: 2, delayMs: 3 });
    expect((await deltaOf(files, 'old', 'new', { codecs })).bytes).toEqual(whole.bytes);
    await codecs.close();
    const parts: Uint8Array[] = [];
    const sink = new ForwardSink({ write: async (chunk) => void parts.push(chunk.slice()) }, { name: 'pipe' });
    await using first = await open(files, 'old', { format: 'raw' });
    await using second = await open(files, 'new', { format: 'raw' });
    await writeDelta(first, second, sink);
    expect(Buffer.concat(parts).equals(whole.bytes)).toBe(true);
  });

  it('is short: what did not change is not in it, and zeros take no room', async () => {
    const files = await twoDisks();
    const { bytes, result } = await deltaOf(files, 'old', 'new');
    expect(result).toMatchObject({ dataBytes: 16 * KiB, zeroBytes: 68 * KiB, records: 5 });
    expect(bytes.length).toBeLessThan(600);
    expect((await deltaOf(files, 'old', 'new', { compression: 'none' })).bytes.length).toBe(128 + 6 * 56 + 16 * KiB);
  });

  it('reads nothing but what an overlay holds when it is made without checksums', async () => {
    const files = new MemoryFiles();
    let read = 0;
    await make(files, 'base', { size: 32 * MiB }, [[0, 32 * MiB, 7]]);
    await makeOverlay(files, 'top', 'base', [[5 * MiB, 100, 1]]);
    await using first = await open(files, 'base');
    await using second = await open(files, 'top', { references: 'allow' });
    for (const node of [first.node, second.node]) {
      const inner = node.read.bind(node);
      node.read = (offset, into, options) => {
        read += into.length;
        return inner(offset, into, options);
      };
    }
    await madeDelta(first, second, { checksums: false });
    expect(read).toBe(128 * KiB);
  });

  it.each([
    ['raw', MiB, 3 * MiB],
    ['raw', 3 * MiB, MiB],
    ['qcow2', MiB, 3 * MiB],
    ['qcow2', 3 * MiB, MiB],
  ])('gives a %s disk its new size: %d to %d bytes', async (format, before, after) => {
    const files = await twoDisks([before, after], format);
    const { bytes } = await deltaOf(files, 'old', 'new');
    expect(await applied(files, 'old', bytes)).toMatchObject({ outcome: 'applied', verified: true });
    await using a = await open(files, 'old');
    await using b = await open(files, 'new');
    expect(Buffer.compare(await contentOf(a), await contentOf(b))).toBe(0);
    expect(a.virtualSize).toBe(after);
  });

  it('is refused by another disk, which stays as it is', async () => {
    const files = await twoDisks();
    const { bytes } = await deltaOf(files, 'old', 'new');
    await make(files, 'other', { size: MiB }, [[700 * KiB, 1, 1]]);
    const before = files.bytes('other').slice();
    await expect(applied(files, 'other', bytes)).rejects.toMatchObject({ reason: 'delta.target' });
    await make(files, 'small', { size: 512 * KiB });
    for (const options of [{}, { resume: true }, { verify: false }]) {
      await expect(applied(files, 'small', bytes, options)).rejects.toMatchObject({ reason: 'delta.target-size' });
    }
    expect(files.bytes('other')).toEqual(before);
    // Told to go on with what is no half of it: found at the end.
    await expect(applied(files, 'other', bytes, { resume: true })).rejects.toMatchObject({
      reason: 'delta.result',
      details: { incomplete: true },
    });
    expect(await applied(files, 'other', bytes, { verify: false })).toMatchObject({ verified: false });
  });

  it('is refused by what cannot get its size, and by what is open for reading', async () => {
    const files = await twoDisks([MiB, 2 * MiB], 'raw');
    const { bytes } = await deltaOf(files, 'old', 'new');
    await createImage('top', { ...toolsOf(files), format: 'cow', backing: { name: 'old', format: 'raw' } });
    const disk = { name: 'top', format: 'cow', content: new Uint8Array(0) };
    await using top = await openDisk(files, disk, { readOnly: false });
    await expect(applyDelta(top, MemoryStore.from(bytes))).rejects.toMatchObject({
      reason: 'delta.resize',
      details: { newSize: 2 * MiB },
    });
    await using image = await open(files, 'new', { format: 'raw' });
    await expect(applyDelta(image, MemoryStore.from(bytes), { resume: true })).rejects.toMatchObject({
      code: 'READ_ONLY',
    });
  });

  it('goes on after a failure in the middle, and says that it has to', async () => {
    for (let nth = 1; ; nth++) {
      let fault: FaultStore | undefined;
      const original = await twoDisks();
      const files = new MemoryFiles({
        wrap: (node, name) => {
          if (name !== 'old') return node;
          fault = new FaultStore(node);
          return fault;
        },
      });
      for (const name of ['old', 'new']) files.add(name, original.bytes(name).slice());
      const { bytes } = await deltaOf(files, 'old', 'new');
      const image = await open(files, 'old', { readOnly: false });
      const rule = fault?.fail({ on: ['write', 'zeroes', 'discard', 'flush'], nth });
      const outcome = await applyDelta(image, MemoryStore.from(bytes)).catch((error: unknown) => error);
      await image.close().catch(() => undefined);
      if (rule?.hits === 0) {
        expect(nth).toBeGreaterThan(4);
        break;
      }
      if (outcome instanceof Error) {
        expect(outcome).toMatchObject({ code: 'IO', reason: 'delta.incomplete', details: { incomplete: true } });
      }
      expect(await applied(files, 'old', bytes, { resume: true })).toMatchObject({ verified: true });
    }
  });

  it.each([
    ['raw', {}, 256 * KiB],
    ['raw', {}, 160 * KiB],
    ['qcow2', { clusterSize: 4096 }, 256 * KiB],
    ['qcow2', { clusterSize: 4096 }, 512 * KiB],
  ])('is brought to its end after a power cut at any moment: %s, %j, to %d bytes', async (format, options, size) => {
    const files = new MemoryFiles();
    const pieces = [0, 20, 27, 36].map((at) => [at * 4096 + 700, 6000, 1 + at] as const);
    await make(files, 'old', { format, size: 256 * KiB, options }, [...pieces, [30 * 4096, 20_000, 5]]);
    await make(files, 'new', { format, size, options }, [
      ...pieces.slice(2),
      [10 * 4096, 5000, 77],
      [30 * 4096, 9000, 5],
    ]);
    const { bytes } = await deltaOf(files, 'old', 'new');
    const base = files.bytes('old').slice();
    const log = new WriteLog();
    const late = new LateStore({ seed: 11 }, MemoryStore.from(base, { pageSize: 4096 }));
    const store = new RecordingStore(late, { log });
    const openStore = (node: MemoryStore | RecordingStore): Promise<Image> =>
      openImage(node, { ...drivers(files), format, readOnly: false });
    {
      await using image = await openStore(store);
      await applyDelta(image, MemoryStore.from(bytes), { verify: false });
    }
    const all = [...cutStates(log, [store], [base])];
    const every = Math.max(1, Math.floor(all.length / 25));
    for (const { contents, what } of all.filter((_, i) => i % every === 0)) {
      await using image = await openStore(MemoryStore.from(contents[0] as Uint8Array, { pageSize: 4096 }));
      const { verified } = await applyDelta(image, MemoryStore.from(bytes), { resume: true });
      expect(verified, what).toBe(true);
      if (format === 'qcow2') expect((await image.check()).corruptions, what).toBe(0);
    }
    expect(all.length).toBeGreaterThan(40);
  });

  it('leaves the file of that name as it was when it fails, and is never written over one of the images', async () => {
    const files = await twoDisks();
    files.add('file', Uint8Array.of(1, 2, 3));
    const tools = drivers(files);
    await using first = await open(files, 'old');
    await using second = await open(files, 'new');
    const stop = new AbortController();
    const stopped = { ...tools, signal: stop.signal, onProgress: () => stop.abort() };
    await expect(writeDelta(first, second, 'file', stopped)).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(writeDelta(first, second, 'new', tools)).rejects.toMatchObject({ reason: 'delta.same-file' });
    expect(files.bytes('file')).toEqual(Uint8Array.of(1, 2, 3));
    expect(files.names()).toEqual(['file', 'new', 'old']);
    await writeDelta(first, second, 'file', tools);
    expect(files.bytes('file')).toEqual((await madeDelta(first, second)).bytes);
    expect(files.names()).toEqual(['file', 'new', 'old']);
  });

  it('tells its progress phase by phase, and can be stopped while it is applied', async () => {
    const files = await twoDisks();
    const phases: string[] = [];
    const note = ({ phase }: { phase: string }): void => {
      if (phases.at(-1) !== phase) phases.push(phase);
    };
    const { bytes } = await deltaOf(files, 'old', 'new', { onProgress: note });
    const stop = new AbortController();
    const onProgress = ({ phase }: { phase: string }): void => {
      if (phase === 'apply') stop.abort();
    };
    await expect(applied(files, 'old', bytes, { signal: stop.signal, onProgress })).rejects.toMatchObject({
      code: 'ABORTED',
      details: { incomplete: true },
    });
    await applied(files, 'old', bytes, { resume: true, onProgress: note });
    await applied(files, 'old', bytes, { onProgress: note });
    expect(phases).toEqual([
      ...['old checksum', 'new checksum', 'delta'],
      ...['read delta', 'apply', 'verify after'],
      ...['read delta', 'verify before', 'apply'],
    ]);
  });

  it('writes to an image that was guessed to be raw, but not what makes another format of it', async () => {
    const files = new MemoryFiles();
    files.add('old', new Uint8Array(MiB));
    const bytes = new Uint8Array(MiB);
    bytes.set(Buffer.from('QFI\xfb\0\0\0\x03', 'latin1'));
    files.add('new', bytes);
    await using first = await open(files, 'old', { format: 'raw' });
    await using second = await open(files, 'new', { format: 'raw' });
    const delta = await madeDelta(first, second);
    const formats = { formats: [qcow2, raw] };
    await using guessed = await open(files, 'old', { ...formats, readOnly: false });
    await expect(applyDelta(guessed, MemoryStore.from(delta.bytes))).rejects.toMatchObject({ code: 'ACCESS' });
  });
});
