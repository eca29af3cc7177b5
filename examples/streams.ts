/** The disk as Web Streams: its hash, and a copy through a pipe of streams. */
import { createHash } from 'node:crypto';
import { createImage, openImage } from 'cowdisk';

const options = { references: 'same-directory' } as const;
await using source = await openImage('samples/overlay.qcow2', options);

async function hash(stream: ReadableStream<Uint8Array>): Promise<string> {
  const digest = createHash('sha256');
  for await (const chunk of stream) digest.update(chunk);
  return digest.digest('hex').slice(0, 16);
}
const before = await hash(source.readable({ chunkSize: 64 * 1024 }));

await createImage('copy.qcow2', { format: 'qcow2', size: source.virtualSize });
await using target = await openImage('copy.qcow2', { readOnly: false });
await source.readable().pipeTo(target.writable());

console.log(before === (await hash(target.readable())) ? 'the same' : 'different');

// Prints:
// the same
