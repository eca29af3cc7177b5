/** The images that the benchmark works on, made once and kept: a disk of real files, half full, and a sparse giant with a million clusters.
 *  Made from files of this machine, in one order, so that a machine always gets the same. */
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  existsSync,
  ftruncateSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';

const MiB = 2 ** 20;
const GiB = 2 ** 30;
const TiB = 2 ** 40;
/** Raise it when an image is made differently. */
const VERSION = 1;

/** Makes what is missing. @returns names of the images in `directory`. */
export function prepareImages(directory, say) {
  mkdirSync(directory, { recursive: true });
  const path = (name) => join(directory, `v${VERSION}-${name}`);
  const images = {
    raw: path('half-full.raw'),
    qcow2: path('half-full.qcow2'),
    compressed: path('half-full-compressed.qcow2'),
    luks: path('half-full.luks'),
    luksEmpty: path('empty.luks'),
    encrypted: path('half-full-encrypted.qcow2'),
    encryptedEmpty: path('empty-encrypted.qcow2'),
    giant: path('giant.qcow2'),
    giantSnapshot: path('giant-snapshot.qcow2'),
    giantRefcounts: path('giant-refcounts.qcow2'),
    giantLeaks: path('giant-leaks.qcow2'),
    sparseRaw: path('sparse.raw'),
    sparse: path('sparse.qcow2'),
    sparseOverlay: path('sparse-overlay.qcow2'),
  };
  make(images.raw, say, (file) => makeDisk(file, `${file}.tree`));
  make(images.qcow2, say, (file) => qemuImg('convert', '-f', 'raw', '-O', 'qcow2', images.raw, file));
  make(images.compressed, say, (file) => qemuImg('convert', '-c', '-f', 'raw', '-O', 'qcow2', images.raw, file));
  make(images.luks, say, (file) => {
    qemuImgWithKey('convert', '-f', 'raw', '-O', 'luks', '-o', LUKS_OPTIONS, images.raw, file);
  });
  make(images.luksEmpty, say, (file) => qemuImgWithKey('create', '-f', 'luks', '-o', LUKS_OPTIONS, file, '1G'));
  make(images.encrypted, say, (file) => {
    qemuImgWithKey('convert', '-f', 'raw', '-O', 'qcow2', '-o', QCOW2_OPTIONS, images.raw, file);
  });
  make(images.encryptedEmpty, say, (file) => qemuImgWithKey('create', '-f', 'qcow2', '-o', QCOW2_OPTIONS, file, '1G'));
  make(images.giant, say, makeGiant);
  make(images.giantSnapshot, say, (file) => {
    copySparse(images.giant, file);
    qemuImg('snapshot', '-c', 'old', file);
  });
  // every fifth refcount is 0
  make(images.giantRefcounts, say, (file) =>
    damage(images.giant, file, giantPlaces().blocks, 2, (table, at, index) => {
      if (index % 5 === 0) table.fill(0, at, at + 2);
    }),
  );
  // every third cluster is mapped no longer, and still counted
  make(images.giantLeaks, say, (file) =>
    damage(images.giant, file, giantPlaces().tables, 8, (table, at, index) => {
      if (index % 3 === 0) table.fill(0, at, at + 8);
    }),
  );
  make(images.sparseRaw, say, (file) => makeSparse(file, images.raw));
  make(images.sparse, say, (file) => qemuImg('convert', '-f', 'raw', '-O', 'qcow2', images.sparseRaw, file));
  make(images.sparseOverlay, say, (file) => makeSparseOverlay(file, images.sparse));
  return images;
}

/** 100 GiB, of which 1 % holds something: pieces of 64 KiB of the disk `from`, scattered evenly. */
const SPARSE = { size: 100 * GiB, piece: 64 * 1024, pieces: (100 * GiB) / 100 / (64 * 1024) };

function makeSparse(file, from) {
  const fd = sized(file, SPARSE.size);
  const source = openSync(from, 'r');
  const bytes = Buffer.alloc(SPARSE.piece);
  for (let i = 0; i < SPARSE.pieces; i++) {
    // What was not filled of the disk must not become a hole.
    if (readSync(source, bytes, 0, bytes.length, (i * bytes.length) % GiB) === 0) bytes.fill(1);
    bytes.writeUInt32LE(i + 1, 0);
    writeSync(fd, bytes, 0, bytes.length, i * SPARSE.piece * 100);
  }
  closeSync(source);
  closeSync(fd);
}

/** An overlay that holds 1 % of the data of its base, the same as there. */
function makeSparseOverlay(file, base) {
  qemuImg('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', file);
  const commands = [];
  for (let i = 0; i < SPARSE.pieces; i += 100) {
    const at = i * SPARSE.piece * 100;
    // The first bytes of a piece are its number.
    commands.push(`write -q -P ${(i + 1) % 256} ${at} 1`);
  }
  const { status, stderr } = spawnSync('qemu-io', ['-f', 'qcow2', file], {
    input: commands.join('\n'),
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`qemu-io: ${stderr}`);
}

function make(file, say, body) {
  if (existsSync(file)) return;
  say(`making ${file.slice(file.lastIndexOf('/') + 1)} …`);
  const unfinished = `${file}.unfinished`;
  rmSync(unfinished, { force: true });
  body(unfinished);
  renameSync(unfinished, file);
}

/** A copy with its holes, in place of what was there. */
export function copySparse(from, to) {
  rmSync(to, { force: true });
  const { status, stderr } = spawnSync('cp', ['--sparse=always', from, to], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`cp: ${stderr}`);
}

/** A copy of `from` in which `change` has seen every entry of its tables at `places`. */
function damage(from, file, places, entryBytes, change) {
  copySparse(from, file);
  const fd = openSync(file, 'r+');
  const table = Buffer.alloc(GIANT.cluster);
  for (const place of places) {
    readSync(fd, table, 0, table.length, place);
    for (let at = 0; at < table.length; at += entryBytes) change(table, at, at / entryBytes);
    writeSync(fd, table, 0, table.length, place);
  }
  closeSync(fd);
}

function qemuImg(...args) {
  const { status, stderr } = spawnSync('qemu-img', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`qemu-img ${args[0]}: ${stderr}`);
}

/** Arguments for the one secret of all encrypted images. */
export const KEY = ['--object', 'secret,id=key,data=bench'];
/** A key that is found at once: what is measured is the disk. */
const LUKS_OPTIONS = 'key-secret=key,iter-time=10';
const QCOW2_OPTIONS = 'encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10';

/** Without the instructions for SHA, nettle is slow enough for QEMU 7.2 to measure it: a clock tick without any CPU time is an error there. */
function qemuImgWithKey(verb, ...args) {
  const env = { ...process.env, NETTLE_FAT_OVERRIDE: 'vendor:intel' };
  for (let attempt = 1; ; attempt++) {
    const { status, stderr } = spawnSync('qemu-img', [verb, ...KEY, ...args], { encoding: 'utf8', env });
    if (status === 0) return;
    if (attempt === 20 || !stderr.includes('Unable to get accurate CPU usage')) throw new Error(`qemu-img: ${stderr}`);
  }
}

/** A disk of 1 GiB with about 512 MiB of the files below /usr: an ext4 file system, or, where that cannot be made, the files end to end. */
function makeDisk(file, tree) {
  const files = someFiles(512 * MiB);
  const mkfs = ['/sbin/mkfs.ext4', '/usr/sbin/mkfs.ext4'].find((path) => existsSync(path));
  if (mkfs === undefined) return makeConcatenation(file, files);
  rmSync(tree, { recursive: true, force: true });
  for (const name of files) {
    mkdirSync(join(tree, dirname(name)), { recursive: true });
    copyFileSync(name, join(tree, name));
  }
  closeSync(sized(file, GiB));
  const { status, stderr } = spawnSync(mkfs, ['-q', '-F', '-d', tree, file], { encoding: 'utf8' });
  rmSync(tree, { recursive: true, force: true });
  if (status !== 0) throw new Error(`mkfs.ext4: ${stderr}`);
}

function makeConcatenation(file, files) {
  const fd = sized(file, GiB);
  let at = 0;
  for (const name of files) {
    const bytes = readFileSync(name);
    // Every file is followed by as much of nothing.
    for (let done = 0; done < bytes.length && at < GiB; at += 2 * MiB) {
      done += writeSync(fd, bytes, done, Math.min(MiB, bytes.length - done), at);
    }
  }
  closeSync(fd);
}

function sized(file, size) {
  const fd = openSync(file, 'w+');
  ftruncateSync(fd, size);
  return fd;
}

/** Regular files below /usr in alphabetical order, every third one (else it would be programs alone), up to so many bytes. */
function someFiles(total) {
  const found = [];
  const walk = (directory) => {
    for (const entry of readdirSync(directory, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const path = join(directory, entry.name);
      if (entry.isDirectory()) walk(path);
      else if (entry.isFile()) found.push(path);
    }
  };
  walk('/usr');
  const chosen = [];
  let bytes = 0;
  for (let start = 0; start < 3; start++) {
    for (let i = start; i < found.length; i += 3) {
      const { size } = lstatSync(found[i]);
      if (size === 0 || size > 16 * MiB) continue;
      if (bytes + size > total) return chosen;
      chosen.push(found[i]);
      bytes += size;
    }
  }
  return chosen;
}

/** Numbers and places, in clusters but for the size of one. */
const GIANT = planGiant();

function planGiant() {
  const cluster = 64 * 1024;
  const runs = 65_536;
  const perRun = 16;
  const tables = TiB / (cluster * (cluster / 8));
  const dataClusters = runs * perRun;
  const perBlock = cluster / 2;
  const fixed = 3 + tables; // header, refcount table, L1 table, L2 tables
  const blocks = Math.ceil((fixed + dataClusters) / (perBlock - 1)) + 1;
  const total = fixed + blocks + dataClusters;
  return { cluster, runs, perRun, tables, blocks, total, blocksAt: 2, l1At: 2 + blocks, l2At: 3 + blocks };
}

/** Offsets of its refcount blocks and L2 tables, bytes. */
function giantPlaces() {
  const { cluster, tables, blocks, blocksAt, l2At } = GIANT;
  const places = (first, count) => Array.from({ length: count }, (_, i) => (first + i) * cluster);
  return { blocks: places(blocksAt, blocks), tables: places(l2At, tables) };
}

/** 1 TiB, version 3, clusters of 64 KiB, 1,048,576 of them allocated in 65,536 runs of 16, a run in every 16 MiB of the disk; the runs lie in
 *  the file in another order than on the disk. Tables only: the data is one hole. */
function makeGiant(file) {
  const { cluster, runs, perRun, tables, blocks, total, blocksAt, l1At, l2At } = GIANT;
  const dataAt = l2At + tables;

  const fd = sized(file, total * cluster);
  const header = Buffer.alloc(112);
  header.write('QFI\xfb', 'latin1');
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(16, 20);
  header.writeBigUInt64BE(BigInt(TiB), 24);
  header.writeUInt32BE(tables, 36);
  header.writeBigUInt64BE(BigInt(l1At * cluster), 40);
  header.writeBigUInt64BE(BigInt(cluster), 48);
  header.writeUInt32BE(1, 56);
  header.writeUInt32BE(4, 96);
  header.writeUInt32BE(104, 100);
  writeSync(fd, header, 0, header.length, 0);
  writeSync(
    fd,
    entries(blocks, (i) => (blocksAt + i) * cluster, 0),
    0,
    blocks * 8,
    cluster,
  );
  writeSync(
    fd,
    entries(tables, (i) => (l2At + i) * cluster, 0x8000_0000),
    0,
    tables * 8,
    l1At * cluster,
  );

  const counts = Buffer.alloc(blocks * cluster);
  for (let i = 0; i < total; i++) counts.writeUInt16BE(1, i * 2);
  writeSync(fd, counts, 0, counts.length, blocksAt * cluster);

  const order = shuffled(runs);
  const perTable = cluster / 8;
  const perSlot = (TiB / cluster / runs) | 0;
  const table = Buffer.alloc(cluster);
  for (let t = 0; t < tables; t++) {
    table.fill(0);
    for (let first = 0; first < perTable; first += perSlot) {
      const run = order[(t * perTable + first) / perSlot];
      for (let i = 0; i < perRun; i++) entry(table, first + i, (dataAt + run * perRun + i) * cluster, 0x8000_0000);
    }
    writeSync(fd, table, 0, cluster, (l2At + t) * cluster);
  }
  closeSync(fd);
}

function entries(count, offsetOf, flags) {
  const bytes = Buffer.alloc(count * 8);
  for (let i = 0; i < count; i++) entry(bytes, i, offsetOf(i), flags);
  return bytes;
}

function entry(bytes, index, offset, flags) {
  bytes.writeUInt32BE(flags + Math.floor(offset / 2 ** 32), index * 8);
  bytes.writeUInt32BE(offset % 2 ** 32, index * 8 + 4);
}

/** The numbers below `count` in an order that looks random and is always the same. */
function shuffled(count) {
  const order = Array.from({ length: count }, (_, i) => i);
  let state = 12345;
  for (let i = count - 1; i > 0; i--) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    const j = state % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
