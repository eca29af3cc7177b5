/** Makes the base images of the hostile tests with the real qemu-img and qemu-io. Run by hand, and never again: recipes of past failures
 *  name bytes of these very files. Usage: node test/hostile/make-bases.mjs DIRECTORY */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';

const target = process.argv[2];
if (target === undefined) throw new Error('usage: make-bases.mjs DIRECTORY');
const scratch = mkdtempSync(join(tmpdir(), 'cowdisk-bases-'));
const run = (program, ...args) => execFileSync(program, args, { cwd: scratch, stdio: ['ignore', 'ignore', 'inherit'] });
const create = (name, size, options) => run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, name, size);
const io = (name, ...commands) => run('qemu-io', ...commands.flatMap((command) => ['-c', command]), name);

create('v2', '3M', 'compat=0.10');
io('v2', 'write -P 1 0 128k', 'write -P 2 1000k 3k', 'write -P 3 2M 64k', 'write -c -P 4 2560k 64k', 'discard 64k 64k');

create('v3', '5243392', 'cluster_size=4096');
io(
  'v3',
  'write -P 5 0 40k',
  'write -P 6 2M 12k',
  'write -z 8k 8k',
  'write -z -u 20k 4k',
  'write -P 7 5M 512',
  'write -z 3M 64k',
);

create('tiny', '300k', 'cluster_size=512,refcount_bits=1,lazy_refcounts=on');
io('tiny', 'write -P 8 0 40k', 'write -P 9 200k 3000', 'discard 10k 2k', 'write -z 1k 1k');

create('wide', '20M', 'cluster_size=2M,refcount_bits=64');
io('wide', 'write -P 10 0 5k', 'write -P 11 4M 10k', 'write -c -P 12 8M 2M');

create('extended', '1M', 'cluster_size=16k,extended_l2=on');
io(
  'extended',
  'write -P 13 0 20k',
  'write -P 14 33k 2k',
  'write -z 4k 3k',
  'write -P 15 512k 16k',
  'write -z 64k 16k',
  'write -z 81k 1k',
  'write -c -P 16 128k 16k',
  'discard 512k 8k',
);

create('zlib', '1M', 'cluster_size=64k,refcount_bits=8');
io('zlib', ...Array.from({ length: 12 }, (_, i) => `write -c -P ${20 + i} ${i * 64}k 64k`));
io('zlib', 'write -P 40 70k 1k');

create('zstd', '1M', 'cluster_size=4k,compression_type=zstd');
io('zstd', ...Array.from({ length: 20 }, (_, i) => `write -c -P ${50 + i} ${i * 8}k 8k`));
io('zstd', 'write -P 70 33k 1k', 'write -z 40k 4k');

create('snapshots', '2M', 'cluster_size=4k');
io('snapshots', 'write -P 80 0 64k', 'write -c -P 81 100k 4k');
run('qemu-img', 'snapshot', '-c', 'first', 'snapshots');
io('snapshots', 'write -P 82 8k 9k', 'write -P 83 1M 8k');
run('qemu-img', 'snapshot', '-c', 'second snapshot', 'snapshots');
io('snapshots', 'write -P 84 0 3k', 'write -z 16k 8k', 'write -P 85 104k 2k');

create('snapshots-v2', '1M', 'cluster_size=1k,compat=v2');
io('snapshots-v2', 'write -P 86 0 16k');
run('qemu-img', 'snapshot', '-c', 'old', 'snapshots-v2');
io('snapshots-v2', 'write -P 87 2k 3k');

create('bitmaps', '4M', 'cluster_size=4k');
run('qemu-img', 'bitmap', '--add', '-g', '512', 'bitmaps', 'fine');
run('qemu-img', 'bitmap', '--add', '--disable', 'bitmaps', 'disabled bitmap');
io('bitmaps', 'write -P 90 0 32k', 'write -P 91 3M 8k');

writeFileSync(join(scratch, 'bottom.raw'), Buffer.alloc(150_000, 0x99));
create('middle.qcow2', '400k', 'cluster_size=4k,backing_file=bottom.raw,backing_fmt=raw');
io('middle.qcow2', 'write -P 100 16k 8k', 'write -P 101 300k 5k', 'write -z 20k 4k');
create('backing', '1M', 'cluster_size=4k,backing_file=middle.qcow2,backing_fmt=qcow2');
io('backing', 'write -P 102 10k 3k', 'write -P 103 500k 4k', 'write -z 18k 6k', 'discard 304k 4k');

create('datafile', '1M', 'cluster_size=4k,data_file=data.raw');
io('datafile', 'write -P 110 0 30k', 'write -P 111 600k 5k', 'write -z 8k 4k');
create('datafile-raw', '512k', 'cluster_size=16k,extended_l2=on,data_file=flat.raw,data_file_raw=on');
io('datafile-raw', 'write -P 112 0 30k', 'write -P 113 300k 5k', 'write -z 64k 16k');

create('dirty', '1M', 'cluster_size=4k,lazy_refcounts=on');
try {
  io('dirty', 'write -P 120 0 64k', 'write -P 121 512k 9k', 'flush', 'abort');
} catch {
  // that is the point
}

writeFileSync(join(scratch, 'secret'), 'open sesame');
const luks = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size=4k';
for (let attempt = 1; attempt <= 20; attempt++) {
  try {
    run('qemu-img', 'create', '-q', '--object', 'secret,id=s,file=secret', '-f', 'qcow2', '-o', luks, 'luks', '512k');
    break;
  } catch {
    // now and then QEMU is not content with how it measured the processor
  }
}
const encrypted = readFileSync(join(scratch, 'luks'));
// key material does not compress, and nobody here has the key
const header = Number(encrypted.readBigUInt64BE(112 + 8));
encrypted.fill(0, header + 4096, header + Number(encrypted.readBigUInt64BE(112 + 16)));
writeFileSync(join(scratch, 'luks'), encrypted);

const all = 'cluster_size=16k,extended_l2=on,compression_type=zstd,lazy_refcounts=on,refcount_bits=32';
create('everything', '1M', all);
io('everything', 'write -P 140 0 40k', 'write -c -P 141 64k 32k', 'write -z 100k 3k');
run('qemu-img', 'snapshot', '-c', 'one', 'everything');
run('qemu-img', 'bitmap', '--add', '-g', '4k', 'everything', 'dirty');
io('everything', 'write -P 142 8k 20k', 'write -P 143 300k 5k', 'discard 64k 16k');
run('qemu-img', 'snapshot', '-c', 'two', 'everything');
io('everything', 'write -P 144 0 3k', 'write -c -P 145 512k 16k');
run('qemu-img', 'bitmap', '--add', '--disable', 'everything', 'idle');

// as `luks`, with a key that is known (features.test.ts opens it): iter-time 1, aes-128, a snapshot
run(
  'qemu-img',
  'create',
  '-q',
  '--object',
  'secret,id=s,file=secret',
  '-f',
  'qcow2',
  '-o',
  `${luks.replace('=10', '=1')},encrypt.cipher-alg=aes-128`,
  'keyed',
  '512k',
);
const keyed = [
  '--object',
  'secret,id=s,file=secret',
  '--image-opts',
  'driver=qcow2,file.filename=keyed,encrypt.key-secret=s',
];
run('qemu-io', '-c', 'write -P 150 0 30k', '-c', 'write -P 151 200k 5k', '-c', 'write -z 8k 4k', ...keyed);
run('qemu-img', 'snapshot', '-c', 'one', ...keyed);
run('qemu-io', '-c', 'write -P 152 4k 9k', ...keyed);

const names = [
  'v2',
  'v3',
  'tiny',
  'wide',
  'extended',
  'zlib',
  'zstd',
  'snapshots',
  'snapshots-v2',
  'bitmaps',
  'backing',
  'middle.qcow2',
  'bottom.raw',
  'datafile',
  'data.raw',
  'datafile-raw',
  'flat.raw',
  'dirty',
  'luks',
  'everything',
  'keyed',
];
for (const name of names) {
  const bytes = readFileSync(join(scratch, name));
  writeFileSync(join(target, `${name}.gz`), gzipSync(bytes, { level: 9 }));
  console.log(name, bytes.length);
}
rmSync(scratch, { recursive: true });
