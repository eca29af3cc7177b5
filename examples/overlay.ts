/** Makes an overlay over a sample image, writes to it, and shows that the base did not change. */
import { chainInfo, createImage, KiB, MiB, openImage } from 'cowdisk';

await createImage('mine.qcow2', {
  format: 'qcow2',
  backing: { name: 'samples/base.qcow2', format: 'qcow2' },
  options: { clusterSize: 4 * KiB },
});

{
  await using disk = await openImage('mine.qcow2', { readOnly: false, references: 'allow' });
  const text = new TextEncoder().encode('written to the overlay');
  await disk.write(12 * MiB, text);
  await disk.flush();
  console.log(new TextDecoder().decode(await disk.read(12 * MiB, text.length)));
}

await using base = await openImage('samples/base.qcow2');
const there = await base.read(12 * MiB, 7);
console.log(`in the base: ${there.join(' ')}`);

const chain = await chainInfo('mine.qcow2', { references: 'allow' });
console.log(chain.map(({ name, clusterSize }) => `${name} (clusters of ${clusterSize})`).join(' -> '));

// Prints:
// written to the overlay
// in the base: 0 0 0 0 0 0 0
// mine.qcow2 (clusters of 4096) -> samples/base.qcow2 (clusters of 16384)
