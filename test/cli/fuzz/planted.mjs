/** A reader of qcow2 images with planted bugs, for the fuzzer to find. Usage: node planted.mjs BUG IMAGE
 *  It looks at two fields of the header and at nothing else. */
import { appendFileSync, readFileSync } from 'node:fs';

const [bug, name] = process.argv.slice(2);
const image = readFileSync(name);
const view = new DataView(image.buffer, image.byteOffset, image.length);
const l1Size = image.length < 40 ? 0 : view.getUint32(36);
const isHit = l1Size > 0x10_0000;

if (isHit && bug === 'crash') process.kill(process.pid, 'SIGSEGV');
if (isHit && bug === 'hang') setInterval(() => undefined, 1000);
if (isHit && bug === 'status') process.exitCode = 99;
if (isHit && bug === 'message') throw new TypeError(`l1Size ${l1Size}`);
if (isHit && bug === 'memory') {
  const held = [];
  for (;;) held.push(Buffer.alloc(1 << 20, 1));
}
if (isHit && bug === 'growth') for (;;) appendFileSync(name, Buffer.alloc(1 << 20, 1));
