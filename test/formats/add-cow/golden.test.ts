/** The images that were made from the texts of the format, not by us. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { addCow } from '../../../src/formats/add-cow/driver.ts';
import { qcow2 } from '../../../src/formats/qcow2/driver.ts';
import { raw } from '../../../src/formats/raw/driver.ts';
import { type OpenImageOptions, openImage } from '../../../src/image/open.ts';
import { MemoryFiles } from '../../image/support/memory-protocol.ts';
import { STALE } from '../../support/add-cow-under-test.ts';

interface Golden {
  readonly file: string;
  readonly layout: 'add-cow-v9' | 'add-cow-v20';
  readonly base: string | null;
  readonly image: string;
  readonly clusterSize: number;
  readonly bitmapOffset: number;
  readonly virtualSize: number;
  readonly dirtyClusters: readonly number[];
  readonly allAllocated?: boolean;
  readonly mergedSha256: string;
}

const DIRECTORY = new URL('../../golden/add-cow/', import.meta.url);
const { images } = JSON.parse(readFileSync(new URL('manifest.json', DIRECTORY), 'utf8')) as {
  readonly images: readonly Golden[];
};

function unpacked(name: string): Uint8Array {
  return new Uint8Array(gunzipSync(readFileSync(new URL(`${name}.gz`, DIRECTORY))));
}

function filesOf(golden: Golden): MemoryFiles {
  const files = new MemoryFiles();
  for (const name of [golden.file, golden.image, ...(golden.base === null ? [] : [golden.base])]) {
    files.add(`dir/${name}`, unpacked(name));
  }
  return files;
}

function open(files: MemoryFiles, golden: Golden, options: Partial<OpenImageOptions> = {}) {
  return openImage(`dir/${golden.file}`, {
    formats: [qcow2, addCow, raw],
    protocols: [files.protocol],
    references: 'same-directory',
    // v9 does not record the format of its backing file.
    probeBacking: golden.layout === 'add-cow-v9',
    ...options,
  });
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

for (const golden of images) {
  const { file, image, clusterSize, virtualSize, dirtyClusters } = golden;
  const total = virtualSize / clusterSize;
  const allAllocated = golden.allAllocated === true;

  describe(file, () => {
    it('A-010, A-016: is recognised, has the size of its image file, and reads as it should', async () => {
      const files = filesOf(golden);
      await using disk = await open(files, golden);
      expect(disk.format).toBe('add-cow');
      expect(disk.virtualSize).toBe(virtualSize);
      const content = await disk.read(0, virtualSize);
      expect(sha256(content)).toBe(golden.mergedSha256);
    });

    it('A-018, A-019: shows no stale byte of its image file', async () => {
      await using disk = await open(filesOf(golden), golden);
      const content = await disk.read(0, virtualSize);
      const stored = unpacked(image);
      const base = golden.base === null ? undefined : unpacked(golden.base);
      let stale = 0;
      for (let cluster = 0; cluster < total; cluster++) {
        const range = [cluster * clusterSize, (cluster + 1) * clusterSize] as const;
        const ours = allAllocated || dirtyClusters.includes(cluster);
        if (!ours && stored.subarray(...range).every((byte) => byte === STALE)) stale++;
        expect(content.subarray(...range), `cluster ${cluster}`).toEqual((ours ? stored : base)?.subarray(...range));
      }
      expect(stale > 0).toBe(!allAllocated);
    });

    it('tells its facts', async () => {
      await using disk = await open(filesOf(golden), golden);
      const version = golden.layout === 'add-cow-v9' ? 'v9' : 'v20';
      expect(await disk.info()).toEqual({
        clusterSize,
        dirty: false,
        ...(golden.base === null
          ? {}
          : { backing: { name: golden.base, ...(version === 'v20' ? { format: 'raw' } : {}) } }),
        specific: {
          type: 'add-cow',
          data: {
            version,
            'image-file': image,
            'image-format': 'raw',
            'all-allocated': allAllocated,
            'allocated-clusters': allAllocated ? total : dirtyClusters.length,
            'total-clusters': total,
          },
        },
      });
    });

    it('checks clean, and nothing is written by opening, reading or checking it for repair', async () => {
      const files = filesOf(golden);
      await using disk = await open(files, golden, { readOnly: false });
      const result = await disk.check({ fix: 'all' });
      expect(result).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0, leaksFixed: 0, totalClusters: total });
      expect(result.allocatedClusters).toBe(allAllocated ? total : dirtyClusters.length);
      await disk.read(0, virtualSize);
      await disk.close();
      expect(files.bytes(`dir/${file}`)).toEqual(unpacked(file));
      expect(files.bytes(`dir/${image}`)).toEqual(unpacked(image));
    });

    it('A-003, A-020: is written in its own layout: data to the image file, one bit for each cluster', async () => {
      const files = filesOf(golden);
      const disk = await open(files, golden, { readOnly: false });
      const wanted = await disk.read(0, virtualSize);
      const bytes = new Uint8Array(clusterSize + 700).fill(0x77);
      await disk.write(clusterSize - 300, bytes);
      wanted.set(bytes, clusterSize - 300);
      await disk.close();
      const bitmap = files.bytes(`dir/${file}`).subarray(golden.bitmapOffset);
      const before = unpacked(file).subarray(golden.bitmapOffset);
      if (!allAllocated) before[0] = (before[0] as number) + 0b110;
      expect(bitmap).toEqual(before);
      expect(files.bytes(`dir/${image}`).length).toBe(virtualSize);
      await using again = await open(files, golden);
      expect(await again.read(0, virtualSize)).toEqual(wanted);
    });
  });
}
