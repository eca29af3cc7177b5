/** Converts a chain of images to one compressed image, with progress, and a signal that would stop it. */
import { checkImage, compareImages, convertImage } from 'cowdisk';

const stop = new AbortController();
process.once('SIGINT', () => stop.abort());

let last = 0;
const result = await convertImage(
  'samples/overlay.qcow2',
  { name: 'flat.qcow2', format: 'qcow2', options: { compressionType: 'zstd' } },
  {
    compressed: true,
    references: 'same-directory',
    signal: stop.signal,
    onProgress: ({ done, total }) => {
      last = done / total;
    },
  },
);
console.log(`${result.copied} bytes copied, ${result.zeroed} left as holes, progress ${last}`);

const { result: check } = await checkImage('flat.qcow2');
console.log(`corruptions ${check.corruptions}, leaks ${check.leaks}, compressed clusters ${check.compressedClusters}`);

const comparison = await compareImages('samples/overlay.qcow2', 'flat.qcow2', { references: 'same-directory' });
console.log(comparison.result);

// Prints:
// 262144 bytes copied, 16515072 left as holes, progress 1
// corruptions 0, leaks 0, compressed clusters 4
// identical
