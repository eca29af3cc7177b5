/** The same input gives the same bytes: each verb that writes, for each format, run twice — in other directories, years apart, with other numbers of
 *  requests at once — leaves the same files. What does not is named in docs/guide/reproducible.md, and here. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { createCodecs } from '../../src/codec/create.ts';
import { convertImage } from '../../src/node.ts';
import { seededRandom } from '../../src/testing/random.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const KiB = 1024;
const MiB = 1024 * KiB;

afterEach(() => {
  vi.useRealTimers();
});

/** A disk with noise, text, zeros and holes in it. */
function disk(size: number, seed: number): Uint8Array {
  const random = seededRandom(seed);
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += 32 * KiB) {
    const kind = Math.floor(random() * 4);
    if (kind === 0) continue;
    for (let i = at; i < Math.min(size, at + 32 * KiB); i++)
      bytes[i] = kind === 1 ? Math.floor(random() * 256) : i % (kind * 7);
  }
  return bytes;
}

interface Occasion {
  readonly directory: string;
  /** `-m`. */
  readonly parallel: string;
}

const ENV = { SOURCE_DATE_EPOCH: '1700000000' };

async function cowdisk(occasion: Occasion, line: readonly string[]): Promise<void> {
  const args = line.map((word) => word.replaceAll('@', `${occasion.directory}/`).replaceAll('%m', occasion.parallel));
  const out = new MemorySink();
  const err = new MemorySink();
  const signal = new AbortController().signal;
  const status = await run({ calledAs: 'cowdisk', args, out, err, env: ENV, signal, input: (async function* () {})() });
  if (status !== 0 && !(args[0] === 'recover' && status === 2)) throw new Error(`${args.join(' ')}: ${err.text}`);
}

/** Every file of a directory by its hash and size. */
function filesOf(directory: string): Record<string, string> {
  const files: Record<string, string> = {};
  for (const name of readdirSync(directory).sort()) {
    const bytes = readFileSync(join(directory, name));
    files[name] = `${bytes.length} ${createHash('sha256').update(bytes).digest('hex')}`;
  }
  return files;
}

let number = 0;

function occasion(year: number, parallel: string): Occasion {
  const directory = path(`${'d'.repeat(1 + (number % 5))}${number++}`);
  mkdirSync(directory);
  vi.useFakeTimers({ toFake: ['Date'], now: Date.UTC(year, 3, 5) });
  writeFileSync(join(directory, 'base.raw'), disk(2 * MiB, 1));
  writeFileSync(join(directory, 'source.raw'), disk(2 * MiB + 300 * KiB, 2));
  for (const name of ['base.raw', 'source.raw']) utimesSync(join(directory, name), 1_600_000_000, 1_600_000_000);
  return { directory, parallel };
}

/** Runs the lines twice. @returns what they left. */
async function twice(lines: readonly (readonly string[])[]): Promise<[Record<string, string>, Record<string, string>]> {
  const left: Record<string, string>[] = [];
  for (const one of [occasion(2026, '1'), occasion(2031, '16')]) {
    for (const line of lines) await cowdisk(one, line);
    left.push(filesOf(one.directory));
  }
  return left as [Record<string, string>, Record<string, string>];
}

const words = (text: string): string[] => text.split(' ');

/** A qcow2 overlay with content, a snapshot and a bitmap. */
const RICH = [
  'create -q -f qcow2 -b base.raw -F raw @a.qcow2 4M',
  'io -c write§-q§-P§7§64k§1M @a.qcow2',
  'bitmap --add @a.qcow2 first',
  'io -c write§-q§-P§9§1M§100k -c write§-q§-z§512k§64k @a.qcow2',
];

/** `§` stands for a blank inside a word. */
const CASES: Readonly<Record<string, readonly string[]>> = {
  'create qcow2': ['create -q -f qcow2 @a.qcow2 4M'],
  'create qcow2 v2': ['create -q -f qcow2 -o compat=0.10 @a.qcow2 4M'],
  'create qcow2 over a backing file': ['create -q -f qcow2 -b base.raw -F raw @a.qcow2'],
  'create qcow2 with metadata': ['create -q -f qcow2 -o preallocation=metadata,extended_l2=on @a.qcow2 4M'],
  'create qcow2 with space': ['create -q -f qcow2 -o preallocation=full @a.qcow2 4M'],
  'create qcow2 with a data file': ['create -q -f qcow2 -o data_file=data.raw,data_file_raw=on @a.qcow2 4M'],
  'create raw': ['create -q -f raw @a.raw 4M'],
  'create cow': [
    'create -q -f cow -o layout=v2-qemu-x86_64 @a.cow 4M',
    'create -q -f cow -o layout=v2-qemu-x86_64 -b base.raw -F raw @b.cow',
  ],
  'create add-cow': [
    'create -q -f add-cow -o image_file=i.raw -b base.raw -F raw @a.add-cow',
    'create -q -f add-cow -o compat=v9,image_file=j.raw -b base.raw -F raw @b.add-cow',
  ],
  'convert to qcow2': ['convert -m %m -f raw -O qcow2 @source.raw @a.qcow2'],
  'convert to qcow2 v2': ['convert -m %m -f raw -O qcow2 -o compat=0.10,cluster_size=4k @source.raw @a.qcow2'],
  'convert to qcow2, compressed': ['convert -c -m %m -f raw -O qcow2 @source.raw @a.qcow2'],
  'convert to qcow2, compressed by zstd': [
    'convert -c -m %m -f raw -O qcow2 -o compression_type=zstd @source.raw @a.qcow2',
  ],
  'convert to qcow2 with subclusters': ['convert -m %m -f raw -O qcow2 -o extended_l2=on @source.raw @a.qcow2'],
  'convert to qcow2 with metadata': ['convert -m %m -f raw -O qcow2 -o preallocation=metadata @source.raw @a.qcow2'],
  'convert to qcow2 with a data file': ['convert -m %m -f raw -O qcow2 -o data_file=data.raw @source.raw @a.qcow2'],
  'convert to qcow2 over a backing file': ['convert -m %m -f raw -O qcow2 -B base.raw -F raw @source.raw @a.qcow2'],
  'convert from qcow2, everything in it': [
    ...RICH,
    'snapshot -c one @a.qcow2',
    'convert -m %m --bitmaps -O qcow2 @a.qcow2 @b.qcow2',
    'convert -m %m -l one -O raw @a.qcow2 @b.raw',
  ],
  'convert to raw': ['convert -m %m -f raw -O qcow2 @source.raw @a.qcow2', 'convert -m %m -O raw @a.qcow2 @b.raw'],
  'convert to cow': ['convert -m %m -f raw -O cow -o layout=v2-qemu-i386 @source.raw @a.cow'],
  'convert to add-cow': ['convert -m %m -f raw -O add-cow -o image_file=i.raw @source.raw @a.add-cow'],
  dd: ['dd -f raw -O qcow2 bs=64k count=20 if=@source.raw of=@a.qcow2'],
  io: RICH,
  'snapshot -c, -a, -d': [
    ...RICH.filter((line) => !line.startsWith('bitmap')),
    'snapshot -c one @a.qcow2',
    'io -c write§-q§-P§3§0§700k @a.qcow2',
    'snapshot -c two @a.qcow2',
    'snapshot -a one @a.qcow2',
    'snapshot -d one @a.qcow2',
  ],
  bitmap: [
    ...RICH,
    'bitmap --add -g 128k @a.qcow2 second',
    'bitmap --merge first @a.qcow2 second',
    'bitmap --disable @a.qcow2 first',
    'bitmap --clear @a.qcow2 first',
    'bitmap --remove @a.qcow2 first',
  ],
  amend: [
    'create -q -f qcow2 -o compat=0.10 @a.qcow2 4M',
    'io -c write§-q§0§1M @a.qcow2',
    'amend -o compat=v3,refcount_bits=32,lazy_refcounts=on @a.qcow2',
    'amend -o compat=v2,refcount_bits=16,lazy_refcounts=off @a.qcow2',
  ],
  resize: [
    ...RICH.slice(0, 2),
    'resize -q @a.qcow2 9M',
    'resize -q --preallocation=metadata @a.qcow2 20M',
    'resize -q --shrink @a.qcow2 1M',
    'resize -q -f raw @base.raw 3M',
  ],
  'resize add-cow': [
    'create -q -f add-cow -o image_file=i.raw -b base.raw -F raw @a.add-cow',
    'io -c write§-q§64k§300k @a.add-cow',
    'resize -q @a.add-cow 3M',
  ],
  'check -r all': [
    ...RICH.filter((line) => !line.startsWith('bitmap')),
    'io -f raw -c write§-q§-P§0§128k§64k @a.qcow2',
    'check -q -r all @a.qcow2',
  ],
  commit: [...RICH.filter((line) => !line.startsWith('bitmap')), 'commit -q @a.qcow2'],
  'commit cow': [
    'create -q -f cow -o layout=v2-qemu-x86_64 -b base.raw -F raw @a.cow',
    'io -c write§-q§64k§300k @a.cow',
    'commit -q -d @a.cow',
  ],
  rebase: [...RICH, 'rebase -b  @a.qcow2'.replace('  ', ' §NONE '), 'rebase -u -b base.raw -F raw @a.qcow2'],
  detach: [
    'create -q -f add-cow -o image_file=i.raw -b base.raw -F raw @a.add-cow',
    'io -c write§-q§64k§300k @a.add-cow',
    'detach --fill @a.add-cow',
  ],
  recover: [
    ...RICH.filter((line) => !line.startsWith('bitmap')),
    'recover -q --ignore-header @a.qcow2 @b.qcow2 --cluster-size 64k --size 4M --without-backing',
  ],
};

const lineOf = (text: string): string[] =>
  words(text).map((word) => (word === '§NONE' ? '' : word.replaceAll('§', ' ')));

describe('the same bytes are written', () => {
  it.each(Object.entries(CASES))('by %s', async (_name, lines) => {
    const [first, second] = await twice(lines.map(lineOf));
    expect(Object.keys(first).length).toBeGreaterThan(2);
    expect(second).toEqual(first);
  });

  it('whatever number of threads compresses, and whichever is first', async () => {
    const source = path('source.raw');
    writeFileSync(source, disk(6 * MiB, 3));
    for (const type of ['zlib', 'zstd']) {
      const made = new Set<string>();
      for (const [workers, delayMs] of [
        [0, 0],
        [1, 0],
        [2, 3],
        [4, 3],
      ] as const) {
        const target = path(`threads-${type}-${workers}.qcow2`);
        const codecs = createCodecs({ workers, delayMs });
        const options = { compressionType: type };
        await convertImage([source], { name: target, format: 'qcow2', options }, { codecs, compressed: true });
        await codecs.close();
        made.add(createHash('sha256').update(readFileSync(target)).digest('hex'));
      }
      expect([type, made.size]).toEqual([type, 1]);
    }
  });

  it('wherever the holes of a raw disk are', async () => {
    const dense = path('dense.raw');
    const sparse = path('sparse.raw');
    writeFileSync(dense, disk(2 * MiB, 4));
    execFileSync('cp', ['--sparse=always', dense, sparse]);
    const made = [dense, sparse].map((source, index) => [source, path(`holes-${index}.qcow2`)] as const);
    for (const [source, target] of made) {
      await convertImage([source], { name: target, format: 'qcow2' });
    }
    expect(statSync(sparse).blocks).toBeLessThan(statSync(dense).blocks);
    const [first, second] = made.map(([, target]) => readFileSync(target));
    expect(first?.equals(second as Buffer)).toBe(true);
  });
});

describe('what differs, differs for a reason', () => {
  it('cow: the time of the backing file', async () => {
    const one = occasion(2026, '1');
    const line = lineOf('create -q -f cow -o layout=v2-qemu-x86_64 -b base.raw -F raw @a.cow');
    await cowdisk(one, line);
    const before = readFileSync(join(one.directory, 'a.cow'));
    utimesSync(join(one.directory, 'base.raw'), 1_600_000_001, 1_600_000_001);
    await cowdisk(one, line);
    const after = readFileSync(join(one.directory, 'a.cow'));
    const different = [...before.keys()].filter((at) => before[at] !== after[at]);
    expect(different).toEqual([1035]);
  });

  it('cow of User Mode Linux: the absolute name of the backing file', async () => {
    const [first, second] = await twice([lineOf('create -q -f cow -b base.raw -F raw @a.cow')]);
    expect(second['a.cow']).not.toBe(first['a.cow']);
  });

  it('qcow2: the date of a snapshot, where SOURCE_DATE_EPOCH does not say it', async () => {
    const one = occasion(2026, '1');
    await cowdisk(one, lineOf('create -q -f qcow2 @a.qcow2 1M'));
    await cowdisk(one, lineOf('snapshot -c one @a.qcow2'));
    const out = new MemorySink();
    const signal = new AbortController().signal;
    const args = ['info', '--json', join(one.directory, 'a.qcow2')];
    await run({ calledAs: 'cowdisk', args, out, err: out, env: {}, signal });
    expect(JSON.parse(out.text).snapshots[0]).toMatchObject({ 'date-sec': 1_700_000_000, 'date-nsec': 0 });
  });

  it('needs SOURCE_DATE_EPOCH to be a number of seconds', async () => {
    const one = occasion(2026, '1');
    await cowdisk(one, lineOf('create -q -f qcow2 @a.qcow2 1M'));
    const err = new MemorySink();
    const signal = new AbortController().signal;
    const args = ['snapshot', '-c', 'one', join(one.directory, 'a.qcow2')];
    const env = { SOURCE_DATE_EPOCH: 'yesterday' };
    expect(await run({ calledAs: 'cowdisk', args, out: err, err, env, signal })).toBe(1);
    expect(err.text).toBe("cowdisk: SOURCE_DATE_EPOCH: expected seconds since 1970, not 'yesterday'\n");
  });
});
