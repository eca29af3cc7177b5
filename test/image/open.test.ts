/** Opening: formats, chains, policy, loops, depth, and that nothing stays open after a failure. */
import { describe, expect, it } from 'vitest';
import type { BlockError } from '../../src/base/errors.ts';
import type { FormatDriver, ImageEvent } from '../../src/core/format.ts';
import { backingChain } from '../../src/core/node.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { openImage } from '../../src/image/open.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { drivers, FORMATS, KiB, make, makeOverlay, open } from './support/fixtures.ts';
import { MemoryFiles } from './support/memory-protocol.ts';

/** Writes another backing file name of the same length over the recorded one. */
async function rename(files: MemoryFiles, image: string, from: string, to: string): Promise<void> {
  expect(to.length).toBe(from.length);
  const bytes = files.bytes(image);
  const at = Buffer.from(bytes).lastIndexOf(from);
  expect(at).toBeGreaterThan(0);
  await files.files.get(image)?.content.write(at, new TextEncoder().encode(to));
}

async function chain(files: MemoryFiles, length: number): Promise<void> {
  await make(files, 'c1', { size: 512 * KiB }, [[0, 4 * KiB, 1]]);
  for (let i = 2; i <= length; i++) await makeOverlay(files, `c${i}`, `c${i - 1}`, [[(i - 1) * 64 * KiB, 4 * KiB, i]]);
}

describe('opening an image', () => {
  it('finds the format out, and says when it had to guess', async () => {
    const files = new MemoryFiles();
    await make(files, 'a.qcow2', { size: 64 * KiB });
    files.add('b.raw', new Uint8Array(1024));
    await using a = await open(files, 'a.qcow2');
    await using b = await open(files, 'b.raw');
    await using c = await open(files, 'a.qcow2', { format: 'raw' });
    expect([a.format, a.probedRaw, a.virtualSize]).toEqual(['qcow2', false, 64 * KiB]);
    expect([b.format, b.probedRaw, b.virtualSize]).toEqual(['raw', true, 1024]);
    expect([c.format, c.probedRaw]).toEqual(['raw', false]);
  });

  it('refuses what nothing recognises when raw is not among the formats', async () => {
    const files = new MemoryFiles();
    files.add('b.raw', new Uint8Array(1024));
    const formats = FORMATS.filter((driver) => driver !== raw);
    await expect(open(files, 'b.raw', { formats })).rejects.toMatchObject({
      code: 'WRONG_FORMAT',
      reason: 'image.not-recognised',
    });
    expect(files.open).toEqual([]);
  });

  it('refuses unknown formats and protocols before it opens anything', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(512));
    await expect(open(files, 'a', { format: 'nofmt' })).rejects.toMatchObject({ reason: 'image.unknown-format' });
    await expect(open(files, 'nosuch:a')).rejects.toMatchObject({ reason: 'protocol.unknown' });
    expect(files.log).toEqual([]);
  });

  it('takes an open store, owns it from then on, and leaves it to the caller when it fails', async () => {
    const store = new MemoryStore({ size: 1024 });
    await expect(openImage(store, { ...drivers(new MemoryFiles()), format: 'qcow2' })).rejects.toMatchObject({
      code: 'WRONG_FORMAT',
    });
    expect(store.closed).toBe(false);
    const image = await openImage(store, { ...drivers(new MemoryFiles()), format: 'raw' });
    await image.close();
    expect(store.closed).toBe(true);
  });

  it('is read-only unless asked', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 64 * KiB });
    await using image = await open(files, 'a');
    expect(image.readOnly).toBe(true);
    await expect(image.write(0, new Uint8Array(1))).rejects.toMatchObject({ code: 'READ_ONLY' });
  });

  it('tells events from the first moment on, and those of one type to who asks for it', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(512));
    const event: ImageEvent = { type: 'warning', node: 'a', reason: 'test', message: 'opening' };
    let report: ((event: ImageEvent) => void) | undefined;
    const driver: FormatDriver = {
      ...raw,
      open: (context, options) => {
        report = context.report;
        context.report(event);
        return raw.open(context, { offset: 0, size: undefined, ...options });
      },
    };
    const told: ImageEvent[] = [];
    await using image = await open(files, 'a', { formats: [driver], onEvent: (e) => told.push(e) });
    expect(told).toEqual([event]);
    const warnings: string[] = [];
    const all: string[] = [];
    const stop = image.on('warning', (e) => warnings.push(e.message));
    image.on('*', (e) => all.push(e.type));
    image.on('corrupted', () => all.push('never'));
    report?.(event);
    stop();
    report?.(event);
    expect(warnings).toEqual(['opening']);
    expect(all).toEqual(['warning', 'warning']);
    expect(told.length).toBe(3);
  });

  it('can be aborted', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 64 * KiB });
    files.log.length = 0;
    await expect(open(files, 'a', { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' });
    expect(files.log).toEqual([]);
  });
});

describe('a backing chain', () => {
  it('is read through, opened read-only below the top, and closed with the image', async () => {
    const files = new MemoryFiles();
    await chain(files, 3);
    const image = await open(files, 'c3', { references: 'allow', readOnly: false });
    expect(backingChain(image.node).map((node) => [node.name, node.supports.write])).toEqual([
      ['c3', true],
      ['c2', false],
      ['c1', false],
    ]);
    expect(image.backingName).toBe('c2');
    const content = await image.read(0, 192 * KiB);
    expect([content[0], content[64 * KiB], content[128 * KiB], content[4 * KiB]]).toEqual([1, 2, 3, 0]);
    expect(new Set(files.open)).toEqual(new Set(['c1', 'c2', 'c3']));
    await image.close();
    await image.close();
    expect(files.open).toEqual([]);
  });

  it('is denied by default, by an error that says how to allow it', async () => {
    const files = new MemoryFiles();
    await chain(files, 2);
    await expect(open(files, 'c2')).rejects.toMatchObject({ code: 'REFERENCE_DENIED', reason: 'reference.denied' });
    expect(files.open).toEqual([]);
  });

  it('layer-only: shows what it is, reads what it has, and never takes the rest for zeros', async () => {
    const files = new MemoryFiles();
    await chain(files, 2);
    files.files.delete('c1');
    await using image = await open(files, 'c2', { references: 'layer-only' });
    expect((await image.info()).backing).toEqual({ name: 'c1', format: 'qcow2' });
    expect(image.backingName).toBe('c1');
    expect((await image.read(64 * KiB, 1))[0]).toBe(2);
    await expect(image.read(0, 512)).rejects.toMatchObject({ code: 'REFERENCE_DENIED' });
    await expect(image.extents()[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: 'REFERENCE_DENIED' });
  });

  it('stays unopened with openBacking: false, even where its name could not be opened', async () => {
    const files = new MemoryFiles();
    await chain(files, 2);
    await rename(files, 'c2', 'c1', ':/');
    await using image = await open(files, 'c2', { openBacking: false });
    expect((await image.info()).backing?.name).toBe(':/');
    await expect(image.read(0, 512)).rejects.toMatchObject({ code: 'REFERENCE_DENIED' });
  });

  it('names relative to the directory of the image that holds them', async () => {
    const files = new MemoryFiles();
    await make(files, 'dir/sub/base', { size: 64 * KiB }, [[0, 512, 7]]);
    await makeOverlay(files, 'dir/top', 'sub/base');
    await using image = await open(files, 'dir/top', { references: 'allow' });
    expect(image.backingName).toBe('dir/sub/base');
    expect((await image.read(0, 1))[0]).toBe(7);
    await expect(open(files, 'dir/top', { references: 'same-directory' })).rejects.toMatchObject({
      code: 'REFERENCE_DENIED',
    });
  });

  it('asks a policy function about each reference, with who refers to what', async () => {
    const files = new MemoryFiles();
    await chain(files, 3);
    const asked: string[] = [];
    const policy = (allow: number) => (reference: { from: string; resolved: string; role: string }) => {
      asked.push(`${reference.from} ${reference.role} ${reference.resolved}`);
      return asked.length <= allow;
    };
    await (await open(files, 'c3', { references: policy(9) })).close();
    expect(asked).toEqual(['c3 backing c2', 'c2 backing c1']);
    asked.length = 0;
    await expect(open(files, 'c3', { references: policy(1) })).rejects.toMatchObject({
      code: 'REFERENCE_DENIED',
      details: { from: 'c2' },
    });
    expect(files.open).toEqual([]);
  });

  it('that has lost a file says which image wanted it, with the cause', async () => {
    const files = new MemoryFiles();
    await chain(files, 3);
    files.files.delete('c1');
    const error = await open(files, 'c3', { references: 'allow' }).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({
      code: 'NOT_FOUND',
      reason: 'image.backing',
      details: { file: 'c3', name: 'c2', errno: 'ENOENT' },
    });
    expect((error as BlockError).cause).toMatchObject({ reason: 'image.backing', details: { file: 'c2', name: 'c1' } });
    expect(files.open).toEqual([]);
  });

  it('is not probed where the format is not recorded, unless that is asked for', async () => {
    const files = new MemoryFiles();
    await chain(files, 2);
    await make(files, 'v', { size: 64 * KiB, backing: { name: 'c1', format: 'qcow2' }, options: { compat: 'v2' } });
    const bytes = files.bytes('v');
    // The extension with the backing format becomes one that nobody knows.
    const at = Buffer.from(bytes).indexOf(Buffer.from([0xe2, 0x79, 0x2a, 0xca]));
    expect(at).toBeGreaterThan(0);
    await files.files.get('v')?.content.write(at, Uint8Array.of(0x12, 0x34, 0x56, 0x78));
    await expect(open(files, 'v', { references: 'allow' })).rejects.toMatchObject({
      code: 'REFERENCE_DENIED',
      reason: 'reference.unprobed',
    });
    expect(files.open).toEqual([]);
    await using image = await open(files, 'v', { references: 'allow', probeBacking: true });
    expect(backingChain(image.node)[1]?.driver).toBe('qcow2');
  });

  it.each([
    ['itself', 'c1', 'c2', 'c2'],
    ['the top, two layers down', 'c1', 'c3', 'c3'],
  ])('that leads back to %s is refused', async (_what, _from, to, top) => {
    const files = new MemoryFiles();
    await chain(files, 3);
    await rename(files, 'c2', 'c1', to);
    await expect(open(files, top, { references: 'allow' })).rejects.toMatchObject({
      code: 'CHAIN',
      reason: 'chain.cycle',
    });
    expect(files.open).toEqual([]);
  });

  it('that leads back under another name of the same file is refused', async () => {
    const files = new MemoryFiles();
    await chain(files, 2);
    files.link('zz', 'c2');
    await rename(files, 'c2', 'c1', 'zz');
    await expect(open(files, 'c2', { references: 'allow' })).rejects.toMatchObject({ reason: 'chain.cycle' });
    expect(files.open).toEqual([]);
  });

  it('is refused past the stated depth, which the error names with its option', async () => {
    const files = new MemoryFiles();
    await chain(files, 5);
    await (await open(files, 'c5', { references: 'allow', maxDepth: 5 })).close();
    const error = await open(files, 'c5', { references: 'allow', maxDepth: 4 }).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: 'CHAIN', reason: 'chain.depth', details: { maxDepth: 4 } });
    expect((error as Error).message).toContain('maxDepth');
    expect(files.open).toEqual([]);
  });

  it('refuses json: names, whatever the policy', async () => {
    const files = new MemoryFiles();
    await make(files, 'json', { size: 64 * KiB });
    await makeOverlay(files, 'top', 'json');
    const bytes = files.bytes('top');
    const at = Buffer.from(bytes).lastIndexOf('json');
    // `json` becomes `json:`: one byte longer, and so is the recorded length.
    await files.files.get('top')?.content.write(at, new TextEncoder().encode('json:'));
    await files.files.get('top')?.content.write(16, Uint8Array.of(0, 0, 0, 5));
    await expect(open(files, 'top', { references: 'allow' })).rejects.toMatchObject({ reason: 'reference.json' });
    expect(files.open).toEqual([]);
  });
});

describe('after a failed open', () => {
  it('every file that was opened is closed, wherever in the chain it failed', async () => {
    for (const broken of ['c1', 'c2', 'c3']) {
      let closed = 0;
      let opened = 0;
      const files = new MemoryFiles({
        wrap: (node, name) => {
          if (!building) opened++;
          const store = new FaultStore(node);
          if (!building && name === broken) store.fail({ on: 'read', always: true });
          const close = store.close.bind(store);
          store.close = () => {
            if (!building) closed++;
            return close();
          };
          return store;
        },
      });
      let building = true;
      await chain(files, 3);
      building = false;
      await expect(open(files, 'c3', { references: 'allow' })).rejects.toMatchObject({ code: 'IO' });
      expect(opened).toBe(4 - Number(broken[1]));
      expect(closed).toBeGreaterThanOrEqual(opened);
      expect(files.open).toEqual([]);
    }
  });

  it('the failure is told even when closing fails as well', async () => {
    const files = new MemoryFiles({
      wrap: (node) => {
        const store = new FaultStore(node);
        store.fail({ on: 'close', always: true, carriedOut: true });
        return store;
      },
    });
    files.add('a', new Uint8Array(512));
    await expect(open(files, 'a', { format: 'qcow2' })).rejects.toMatchObject({ code: 'WRONG_FORMAT' });
    expect(files.open).toEqual([]);
  });
});
