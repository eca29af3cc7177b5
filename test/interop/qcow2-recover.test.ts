/** Images that QEMU made, with metadata destroyed: what is recovered checks clean by QEMU, what was called certain is what QEMU read before the damage,
 *  and the damaged file is not touched. */
import { copyFileSync, readFileSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { afterAll, expect, it } from 'vitest';
import type { RecoveredRange } from '../../src/core/recovery.ts';
import { openImage, recoverImage } from '../../src/node.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { describeWithQemu, scratchDirectory } from '../formats/qcow2/support.ts';
import { stamp } from '../support/damaged-images.ts';
import { metadataOf, pickVictims } from '../support/damaged-qcow2.ts';
import { scaled } from '../support/seeds.ts';
import { Workbench } from './qcow2-workbench.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

interface Case {
  readonly name: string;
  /** Options of the new image. */
  readonly options: string;
  readonly compressed?: boolean;
  readonly snapshot?: boolean;
  readonly backing?: boolean;
}

const CASES: readonly Case[] = [
  { name: 'clusters of 512 bytes', options: 'cluster_size=512' },
  { name: 'version 2', options: 'cluster_size=512,compat=0.10' },
  { name: 'zstd', options: 'cluster_size=1k,compression_type=zstd', compressed: true },
  { name: 'deflate', options: 'cluster_size=1k', compressed: true },
  { name: 'preallocated metadata', options: 'cluster_size=512,preallocation=metadata' },
  { name: 'refcounts of 32 bits', options: 'cluster_size=512,refcount_bits=32' },
  { name: 'a snapshot', options: 'cluster_size=512', snapshot: true },
  { name: 'an overlay', options: 'cluster_size=512', backing: true },
];

describeWithQemu('recovering what qemu-img made', () => {
  const here = new Workbench(scratchDirectory());
  afterAll(() => here.dispose());

  async function made({ options, compressed, snapshot, backing }: Case): Promise<string> {
    const image = here.path('whole.qcow2');
    const source = new Uint8Array(3 * MiB);
    const random = seededRandom(5);
    for (let at = 0; at < source.length; at += 8 * KiB) {
      if (below(random, 5) > 0) source.set(stamp(at, 8 * KiB, 1), at);
    }
    const raw = await open(here.path('source.raw'), 'w');
    await raw.write(source);
    await raw.close();
    if (backing === true) {
      await here.img('create', '-q', '-f', 'qcow2', '-o', options, '-b', 'source.raw', '-F', 'raw', image);
      const commands = [];
      for (let at = 0; at < source.length; at += 32 * KiB)
        commands.push(`write -q -P ${1 + below(random, 250)} ${at} 12k`);
      await here.io(image, commands);
    } else {
      await here.img(
        'convert',
        '-f',
        'raw',
        '-O',
        'qcow2',
        '-o',
        options,
        ...(compressed === true ? ['-c'] : []),
        'source.raw',
        image,
      );
    }
    if (snapshot === true) {
      await here.img('snapshot', '-c', 'one', image);
      await here.io(image, ['write -q -P 9 1M 64k', 'write -q -P 10 2M 16k']);
    }
    return image;
  }

  it.each(CASES)('$name', async (what) => {
    rmSync(here.path('whole.qcow2'), { force: true });
    const image = await made(what);
    await here.img('convert', '-f', 'qcow2', '-O', 'raw', image, 'before.raw');
    const before = readFileSync(here.path('before.raw'));
    const metadata = await metadataOf(MemoryStore.from(readFileSync(image)));
    for (let seed = 1; seed <= scaled(1); seed++) {
      const random = seededRandom(seed);
      const damaged = here.path('damaged.qcow2');
      copyFileSync(image, damaged);
      const file = await open(damaged, 'r+');
      for (const at of pickVictims(metadata, 10, random, ['header'])) {
        const bytes =
          below(random, 2) === 0 ? new Uint8Array(metadata.clusterSize) : noise(random, metadata.clusterSize);
        await file.write(bytes, 0, bytes.length, at);
      }
      await file.close();
      const bytes = readFileSync(damaged);
      const target = here.path('recovered.qcow2');
      rmSync(target, { force: true });
      const ranges: RecoveredRange[] = [];
      await recoverImage(damaged, target, { references: 'allow', onRange: (range) => ranges.push(range) });
      expect(readFileSync(damaged).equals(bytes)).toBe(true);
      await here.img('check', '-f', 'qcow2', target);
      await here.img('convert', '-f', 'qcow2', '-O', 'raw', target, 'after.raw');
      const after = readFileSync(here.path('after.raw'));
      let right = 0;
      for (const { start, length, state, why } of ranges) {
        const same = after.subarray(start, start + length).equals(before.subarray(start, start + length));
        if (state === 'certain') expect(same, `seed ${seed}: ${why} at ${start}`).toBe(true);
        if (same) right += length;
      }
      expect(after.length).toBe(before.length);
      expect(right, `seed ${seed}`).toBeGreaterThan(0);
      await using recovered = await openImage(target);
      expect(recovered.virtualSize).toBe(before.length);
    }
  });
});
