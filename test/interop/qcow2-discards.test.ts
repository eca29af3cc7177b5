/** Images whose space was given back in every way there is: qemu-img finds them sound, and reads what the guest left. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { createImage, openImage } from '../../src/node.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { describeWithQemu, qemuImg, scratchDirectory } from '../formats/qcow2/support.ts';

const KiB = 1024;
const SIZE = 2048 * KiB;

describeWithQemu('an image after writes, zeroes and discards that reach the files below', () => {
  const directory = scratchDirectory();
  const path = (name: string) => join(directory, name);

  const kinds: readonly (readonly [string, Record<string, unknown>, Record<string, unknown>])[] = [
    ['clusters of its own', {}, {}],
    ['discard-no-unref (M-24)', {}, { discardNoUnref: true }],
    ['subclusters (M-03, M-29)', { extendedL2: true }, {}],
    ['subclusters and discard-no-unref (M-03, M-24)', { extendedL2: true }, { discardNoUnref: true }],
    ['a data file (M-05)', { dataFile: 'data-file' }, {}],
    ['a raw data file (M-06)', { dataFile: 'data-file', dataFileRaw: true }, {}],
    ['a data file and subclusters (M-05)', { dataFile: 'data-file', extendedL2: true }, {}],
  ];
  it.each(kinds)(
    'with %s is sound and the same for qemu-img (M-03, M-05, M-06, M-24, M-29, Q-071)',
    async (_, create, options) => {
      await createImage(path('image'), { format: 'qcow2', size: SIZE, options: create, references: 'allow' });
      const disk = await openImage(path('image'), { readOnly: false, references: 'allow', discard: 'unmap', options });
      const model = new Uint8Array(SIZE);
      const seed = 7;
      const random = seededRandom(seed);
      for (let i = 0; i < 150; i++) {
        const offset = below(random, SIZE - 200 * KiB);
        const length = 1 + below(random, 200 * KiB);
        const kind = below(random, 6);
        if (kind < 2) {
          const bytes = new Uint8Array(length).fill(1 + below(random, 255));
          await disk.write(offset, bytes);
          model.set(bytes, offset);
        } else if (kind === 2) {
          await disk.writeZeroes(offset, length, { unmap: below(random, 2) === 0 });
          model.fill(0, offset, offset + length);
        } else if (kind < 5) {
          // Whole clusters, or whole subclusters: of those it is known what they read as.
          const unit = create['extendedL2'] === true ? 2 * KiB : 64 * KiB;
          const start = offset - (offset % unit);
          const end = start + unit * (1 + below(random, 3));
          await disk.discard(start, end - start);
          model.fill(0, start, end);
        } else await disk.flush();
      }
      await disk.close();
      writeFileSync(path('model'), model);
      expect(qemuImg(directory, 'check', 'image')).toContain('No errors were found');
      expect(qemuImg(directory, 'compare', '-f', 'qcow2', '-F', 'raw', 'image', 'model')).toBe(
        'Images are identical.\n',
      );
      if (create['dataFileRaw'] === true) {
        expect(Buffer.compare(readFileSync(path('data-file')).subarray(0, SIZE), model), `seed ${seed}`).toBe(0);
      }
    },
  );
});
