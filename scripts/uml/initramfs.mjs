/** The guest's first file system: a cpio archive ("newc") with busybox, init.sh and the job.
 *  Holds names inside the guest only, no time and no owner: the same input gives the same archive. */
import { closeSync, existsSync, openSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';

const DIRECTORY = 0o040755;
const PROGRAM = 0o100755;
const FILE = 0o100644;
const CHARACTER_DEVICE = 0o020600;

/** Makes the archive.
 *  @param busybox path of a statically linked busybox
 *  @param job what the guest runs: a shell script, under `sh -e -o pipefail`
 *  @param files further files, [name in the guest, content] each; in the root directory */
export function initramfs(busybox, job, files = []) {
  const init = readFileSync(new URL('init.sh', import.meta.url));
  return cpio([
    { name: 'bin', mode: DIRECTORY },
    { name: 'dev', mode: DIRECTORY },
    // Without it the kernel gives the first process no output.
    { name: 'dev/console', mode: CHARACTER_DEVICE, device: [5, 1] },
    { name: 'bin/busybox', mode: PROGRAM, content: readFileSync(busybox) },
    { name: 'init', mode: PROGRAM, content: init },
    { name: 'job', mode: FILE, content: Buffer.from(job) },
    ...files.map(([name, content]) => ({ name, mode: FILE, content })),
  ]);
}

function cpio(entries) {
  const records = entries.map((entry, index) => record(index + 1, entry));
  return Buffer.concat([...records, record(0, { name: 'TRAILER!!!', mode: 0 })]);
}

/** One file: a header of eight-digit hexadecimal numbers, the name, the content, each filled up to a multiple of 4. */
function record(inode, { name, mode, content = Buffer.alloc(0), device: [major, minor] = [0, 0] }) {
  const links = (mode & 0o170000) === 0o040000 ? 2 : 1;
  const nameLength = Buffer.byteLength(name) + 1;
  const numbers = [inode, mode, 0, 0, links, 0, content.length, 0, 0, major, minor, nameLength, 0];
  const header = `070701${numbers.map((number) => number.toString(16).padStart(8, '0')).join('')}`;
  return Buffer.concat([filled(Buffer.from(`${header}${name}\0`)), filled(content)]);
}

function filled(bytes) {
  return Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
}

/** The first busybox of PATH that needs nothing else to run; `undefined` when there is none. */
export function staticBusybox() {
  const candidates = (process.env.PATH ?? '/usr/bin:/bin').split(':').map((directory) => join(directory, 'busybox'));
  return candidates.find((path) => existsSync(path) && isStatic(path));
}

/** Whether an ELF program names no interpreter (the dynamic linker). */
function isStatic(path) {
  const INTERPRETER = 3;
  const head = Buffer.alloc(4096);
  const file = openSync(path, 'r');
  const length = readSync(file, head, 0, head.length, 0);
  closeSync(file);
  if (length < 64 || head.readUInt32BE(0) !== 0x7f454c46 || head[4] !== 2) return false;
  const table = Number(head.readBigUInt64LE(32));
  const size = head.readUInt16LE(54);
  const count = head.readUInt16LE(56);
  for (let at = table; at < table + count * size && at + 4 <= length; at += size) {
    if (head.readUInt32LE(at) === INTERPRETER) return false;
  }
  return true;
}
