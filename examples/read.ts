/** Opens an overlay with its backing file, reads from it, and tells where its data lies. */
import { openImage } from 'cowdisk';

// Names inside images are not followed unless the caller says so: here, plain names in the same directory.
await using disk = await openImage('samples/overlay.qcow2', { references: 'same-directory' });
console.log(`${disk.format}, ${disk.virtualSize} bytes`);

// An ext4 file system: its superblock begins at byte 1024, and has the volume's label at byte 120.
const label = await disk.read(1024 + 120, 16);
console.log(`label: ${new TextDecoder().decode(label).replace(/\0+$/, '')}`);

let own = 0;
let below = 0;
for await (const extent of disk.extents()) {
  if (!extent.data) continue;
  if (extent.depth === 0) own += extent.length;
  else below += extent.length;
}
console.log(`${own} bytes in the overlay, ${below} in its backing file`);

// Prints:
// qcow2, 16777216 bytes
// label: cowdisk-demo
// 24576 bytes in the overlay, 172032 in its backing file
