import { describe, expect, it } from 'vitest';
import { KiB } from '../../../src/base/sizes.ts';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { FaultStore } from '../../../src/testing/fault-store.ts';
import { RecordingStore, WriteLog } from '../../../src/testing/recording-store.ts';
import {
  type AddCowVariant,
  checkAddCow,
  createAddCowFiles,
  openAddCow,
  unitOf,
} from '../../support/add-cow-under-test.ts';
import { contentOf, failureOf, filled, pattern } from './support.ts';

interface Resized {
  readonly file: FaultStore;
  readonly image: FaultStore;
  readonly node: MappedNode;
  fileBytes(): Uint8Array;
  imageBytes(): Uint8Array;
  reopen(): Promise<MappedNode>;
}

async function opened(size: number, variant: AddCowVariant, backingSize: number | undefined): Promise<Resized> {
  const made = await createAddCowFiles(size, variant, backingSize !== undefined);
  const file = new FaultStore(made.file);
  const image = new FaultStore(made.image);
  const backing = (): { backing?: MemoryStore } =>
    backingSize === undefined ? {} : { backing: MemoryStore.from(filled(backingSize, 0xbb), { readOnly: true }) };
  const node = await openAddCow(file, image, backing());
  return {
    file,
    image,
    node,
    fileBytes: () => made.file.bytes(),
    imageBytes: () => made.image.bytes(),
    reopen: async () => {
      await node.close();
      return await openAddCow(made.file.reopen(), made.image.reopen(), { readOnly: true, ...backing() });
    },
  };
}

for (const variant of [{ compat: 'v9' }, {}, { clusterSize: 16 * KiB }] satisfies AddCowVariant[]) {
  const unit = unitOf(variant);
  const bitmapOffset = variant.compat === 'v9' ? 2560 : Math.max(4096, unit);
  const title = `${variant.compat ?? 'v20'}, clusters of ${unit}`;
  const old = 3 * unit + 1024;

  describe(`R3: a disk that grows: ${title}`, () => {
    for (const backingSize of [0, 2 * unit, old, old + 512, 4 * unit + 700, 40 * unit]) {
      for (const last of ['untouched', 'written']) {
        it(`reads as zero behind its old end, over a backing file of ${backingSize} bytes, its last cluster ${last}`, async () => {
          const { node, reopen } = await opened(old, variant, backingSize);
          const wanted = new Uint8Array(20 * unit).fill(0xbb, 0, Math.min(old, backingSize));
          if (last === 'written') {
            await node.write(old - 10, filled(10, 1));
            wanted.fill(1, old - 10, old);
          }
          for (const size of [old + 512, 4 * unit, 5 * unit + 512, 20 * unit]) {
            await node.truncate(size);
            expect(node.size).toBe(size);
            expect(await contentOf(node)).toEqual(wanted.subarray(0, size));
          }
          await node.write(10 * unit + 5, filled(10, 2));
          wanted.fill(2, 10 * unit + 5, 10 * unit + 15);
          expect(await contentOf(await reopen())).toEqual(wanted);
        });
      }
    }

    it('forgets what was left in the bitmap behind its old end', async () => {
      const { file, node, image, reopen } = await opened(old, variant, 0);
      await file.write(bitmapOffset, Uint8Array.of(0xf0, 0xff, 0xff));
      await image.truncate(30 * unit);
      await image.write(0, filled(30 * unit, 0xee));
      await image.truncate(old);
      await node.truncate(30 * unit);
      expect(await contentOf(node)).toEqual(new Uint8Array(30 * unit));
      expect(await contentOf(await reopen())).toEqual(new Uint8Array(30 * unit));
    });
  });

  describe(`R3: a disk that shrinks: ${title}`, () => {
    it('keeps what is left, and never shows what went though it grows again', async () => {
      const size = 9 * unit + 512;
      const { node, reopen, fileBytes } = await opened(size, variant, 6 * unit);
      const wanted = pattern(size);
      await node.write(0, wanted);
      for (const less of [8 * unit, 4 * unit + 512, unit + 1024]) {
        await node.truncate(less);
        expect(await contentOf(node)).toEqual(wanted.subarray(0, less));
        wanted.fill(0, less);
        await node.truncate(size);
        expect(await contentOf(node)).toEqual(wanted);
      }
      await node.truncate(512);
      expect(fileBytes().length).toBe(variant.compat === 'v9' ? 2561 : bitmapOffset + unit);
      expect(await contentOf(await reopen())).toEqual(wanted.subarray(0, 512));
    });

    it('leaves no bit past its end', async () => {
      const { node, reopen, fileBytes, imageBytes } = await opened(9 * unit, variant, 6 * unit);
      await node.write(0, filled(9 * unit, 1));
      await node.truncate(2 * unit + 512);
      await reopen();
      expect(fileBytes()[bitmapOffset]).toBe(0b111);
      const result = await checkAddCow(MemoryStore.from(fileBytes()), MemoryStore.from(imageBytes()));
      expect(result).toMatchObject({ leaks: 0, lines: [], allocatedClusters: 3 });
    });
  });

  describe(`R3: a resize that fails: ${title}`, () => {
    const size = 9 * unit + 512;
    for (const target of [20 * unit, 2 * unit + 512]) {
      const way = target > size ? 'growing' : 'shrinking';

      it(`at the bitmap file leaves the image file untouched: ${way}`, async () => {
        const { file, node, imageBytes, reopen } = await opened(size, variant, 30 * unit);
        await node.write(unit + 5, filled(2 * unit, 1));
        await node.write(8 * unit, filled(unit, 2));
        await node.flush();
        const before = imageBytes();
        const content = await contentOf(node);
        file.fail({ on: way === 'growing' ? 'flush' : ['truncate', 'zeroes', 'write'], errno: 'ENOSPC' });
        expect((await failureOf(async () => await node.truncate(target))).code).toBe('NO_SPACE');
        // The last cluster's rest may have been copied into the place it has; the guest sees none of it.
        expect(imageBytes().subarray(0, 9 * unit)).toEqual(before.subarray(0, 9 * unit));
        expect(imageBytes().length).toBe(size);
        expect(node.size).toBe(size);
        expect(await contentOf(node)).toEqual(content);
        expect(await contentOf(await reopen())).toEqual(content);
      });

      it(`at the image file puts the bitmap back: ${way}`, async () => {
        const { image, node, fileBytes, imageBytes, reopen } = await opened(size, variant, 30 * unit);
        await node.write(unit + 5, filled(2 * unit, 1));
        await node.write(8 * unit, filled(unit + 512, 2));
        await node.flush();
        const bits = fileBytes().subarray(bitmapOffset, bitmapOffset + 2);
        const before = imageBytes();
        const content = await contentOf(node);
        image.fail({ on: 'truncate', errno: 'EFBIG' });
        expect((await failureOf(async () => await node.truncate(target))).code).toBe('TOO_LARGE');
        expect(imageBytes()).toEqual(before);
        expect(fileBytes().subarray(bitmapOffset, bitmapOffset + 2)).toEqual(bits);
        expect(await contentOf(node)).toEqual(content);
        await node.truncate(target);
        const end = Math.min(target, size);
        expect(await contentOf(node, 0, end)).toEqual(content.subarray(0, end));
        expect(await contentOf(await reopen(), 0, end)).toEqual(content.subarray(0, end));
      });

      it(`and cannot be undone is the end of the node: ${way}`, async () => {
        const { file, image, node } = await opened(size, variant, 30 * unit);
        await node.write(8 * unit, filled(unit + 512, 2));
        await node.flush();
        image.truncate = () => {
          file.fail({ on: ['write', 'zeroes', 'flush', 'truncate'], always: true });
          throw new Error('the image file fails, and the bitmap file from now on');
        };
        await expect((async () => await node.truncate(target))()).rejects.toThrow('from now on');
        const failure = await failureOf(async () => await node.read(0, new Uint8Array(1)));
        expect(failure.reason).toBe('engine.condemned');
        expect(failure.cause).toMatchObject({ reason: 'add-cow.resize-undo' });
      });
    }

    it('because it makes no sense is refused before anything is done', async () => {
      const { node, fileBytes, imageBytes } = await opened(size, variant, 30 * unit);
      const before = [fileBytes(), imageBytes()];
      for (const [to, preallocation, reason] of [
        [size + 100, 'off', 'unaligned'],
        [unit, 'full', 'preallocation'],
      ] as const) {
        const failure = await failureOf(async () => await node.truncate(to, { preallocation }));
        expect(failure).toMatchObject({ code: 'OPTION', reason: `add-cow.resize-${reason}` });
      }
      const metadata = await failureOf(async () => await node.format.resize?.(size + 512, 'metadata'));
      expect(metadata.reason).toBe('add-cow.resize-preallocation');
      expect([fileBytes(), imageBytes()]).toEqual(before);
      await node.truncate(size);
      expect([fileBytes(), imageBytes()]).toEqual(before);
    });
  });
}

describe('R3: the order of a resize', () => {
  for (const target of [20 * KiB, 9 * KiB]) {
    it(`is the bitmap file, durable, and only then the image file: 14 KiB to ${target}`, async () => {
      const { file, image } = await createAddCowFiles(14 * KiB, {}, true);
      const log = new WriteLog();
      const backing = MemoryStore.from(filled(40 * KiB, 0xbb), { readOnly: true });
      const stores = [new RecordingStore(file, { log }), new RecordingStore(image, { log })] as const;
      const node = await openAddCow(...stores, { backing });
      await node.write(12 * KiB, filled(2 * KiB, 1));
      await node.flush();
      log.clear();
      await node.truncate(target);
      const steps = log.entries.map(({ kind, store }) => `${kind} ${store.name}`);
      const resized = steps.indexOf('truncate image');
      expect(steps.filter((step) => step.endsWith('image')).slice(-2)).toEqual(['truncate image', 'flush image']);
      expect(steps.slice(0, resized).at(-1)).toBe('flush disk');
      expect(steps.slice(resized)).toEqual(['truncate image', 'flush image']);
    });
  }

  it('touches the image file alone where everything is allocated', async () => {
    const { node, fileBytes, imageBytes, reopen } = await opened(10 * KiB, {}, undefined);
    const before = fileBytes();
    await node.write(0, pattern(10 * KiB));
    for (const size of [40 * KiB, 6 * KiB, 20 * KiB]) await node.truncate(size);
    const wanted = new Uint8Array(20 * KiB);
    wanted.set(pattern(10 * KiB).subarray(0, 6 * KiB));
    expect(await contentOf(node)).toEqual(wanted);
    expect(fileBytes()).toEqual(before);
    expect(imageBytes()).toEqual(wanted);
    expect(await contentOf(await reopen())).toEqual(wanted);
  });

  it('is refused where the image file cannot change its size', async () => {
    const { file, image } = await createAddCowFiles(10 * KiB, {}, true);
    const fixed = Object.create(image) as MemoryStore;
    Object.defineProperty(fixed, 'supports', { value: { ...image.supports, truncate: false } });
    const proxy = new Proxy(image, {
      get(target, key) {
        if (key === 'supports') return fixed.supports;
        const value = Reflect.get(target, key, target) as unknown;
        return typeof value === 'function' ? (value as (...args: unknown[]) => unknown).bind(target) : value;
      },
    });
    const node = await openAddCow(file, proxy, { backing: new MemoryStore() });
    const before = file.bytes();
    const failure = await failureOf(async () => await node.truncate(20 * KiB));
    expect(failure).toMatchObject({ code: 'UNSUPPORTED', reason: 'add-cow.resize-image' });
    expect(file.bytes()).toEqual(before);
  });
});
