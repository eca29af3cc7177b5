/** What is printed of damage that is met while an image is in use: QEMU's own lines. */
import { readFileSync, writeFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { openImage } from '../../src/node.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();

async function qemuImg(...args: string[]) {
  const out = new MemorySink();
  const err = new MemorySink();
  const status = await run({ calledAs: 'qemu-img', args, out, err, env: {}, signal: new AbortController().signal });
  return { status, out: out.text, err: err.text };
}

/** An image whose only L2 entry is no place for a cluster. */
async function damaged(name: string): Promise<string> {
  const image = path(name);
  await qemuImg('create', '-q', '-f', 'qcow2', image, '1M');
  const disk = await openImage(image, { readOnly: false });
  await disk.write(0, new Uint8Array(65536).fill(1));
  await disk.close();
  const bytes = readFileSync(image);
  const l2 = Number(bytes.readBigUInt64BE(0x30000) % (1n << 56n));
  bytes.writeBigUInt64BE((1n << 63n) | 0x5200n, l2);
  writeFileSync(image, bytes);
  return image;
}

const WHAT = 'Cluster allocation offset 0x5200 unaligned (L2 offset: 0x40000, L2 index: 0)';

it('of an image that is read: corrupt, once (Q-221, Q-222)', async () => {
  const image = await damaged('read.qcow2');
  const before = readFileSync(image);
  const { status, err } = await qemuImg('compare', image, image);
  expect(status).toBeGreaterThan(1);
  const line = `qcow2: Image is corrupt: ${WHAT}; further non-fatal corruption events will be suppressed\n`;
  expect(err).toContain(line);
  expect(readFileSync(image)).toEqual(before);
});

it('of an image that is written: marked as corrupt, and marked (Q-067, Q-222, Q-224)', async () => {
  const image = await damaged('written.qcow2');
  writeFileSync(path('source'), new Uint8Array(1 << 20).fill(2));
  const { status, err } = await qemuImg('convert', '-n', '-f', 'raw', '-O', 'qcow2', path('source'), image);
  expect(status).toBe(1);
  expect(err).toContain(`qcow2: Marking image as corrupt: ${WHAT}; further corruption events will be suppressed\n`);
  expect((readFileSync(image)[79] as number) % 4).toBe(2);
});
