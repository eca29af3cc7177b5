/** Images through pipes, against qemu-img: what was written forward checks clean and holds the same disk, in every format and both directions. */
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { describeWithQemu, qemuImg } from '../formats/qcow2/support.ts';
import { scratch } from '../support/scratch.ts';
import { requireBuild } from './transcript-harness.ts';

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;
const PROGRAM = fileURLToPath(new URL('../../bin/cowdisk.js', import.meta.url));
const LONG = process.env['COWDISK_LONG'] === '1';
const path = scratch();
mkdirSync(path('temporary'));

interface Ended {
  readonly status: number | null;
  readonly text: string;
}

/** Runs a shell command with `cowdisk` and `pipefail`; both streams of all programs are in `text`. */
function shell(command: string): Ended {
  const text = `cowdisk() { '${process.execPath}' '${PROGRAM}' "$@"; }; ${command}`;
  const { status, stdout } = spawnSync('bash', ['-o', 'pipefail', '-c', `{ ${text}\n} 2>&1`], {
    cwd: path('.'),
    encoding: 'utf8',
    env: { ...process.env, TMPDIR: path('temporary'), NETTLE_FAT_OVERRIDE: 'vendor:intel' },
  });
  return { status, text: stdout };
}

function expectSame(command: string, prints = ''): void {
  const { status, text } = shell(command);
  expect({ status, text: text.replaceAll(/file '[^']*'/g, "file '…'") }).toEqual({ status: 0, text: prints });
  expect(readdirSync(path('temporary'))).toEqual([]);
}

const spooled = (what: string, why: string): string => `cowdisk: ${what} goes through the temporary file '…': ${why}\n`;
const TWICE = spooled('standard input', 'what the target holds must be known before it is written');
const TARGET = spooled('standard output', 'the target cannot be written from its first byte to its last');
const LENGTH = spooled('standard input', 'how it is to be read depends on its length');
const ORDER = spooled('standard input', 'its data do not lie in the order of the disk, behind its tables');
const SIZE = spooled('standard input', 'its size must be known before the target is made');

/** Bytes with no zeros in long rows, the same on every run. */
function noise(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0, i = 0; at < length; at += 32, i++) {
    createHash('sha256').update(`${seed} ${i}`).digest().copy(bytes, at);
  }
  return bytes;
}

describeWithQemu('images through pipes', () => {
  beforeAll(() => {
    requireBuild();
    const disk = Buffer.alloc(80 * MiB);
    noise(3 * MiB, 1).copy(disk, 0);
    noise(70_000, 2).copy(disk, 40 * MiB + 12_345);
    noise(MiB + 512, 3).copy(disk, 78 * MiB);
    writeFileSync(path('disk.raw'), disk);
    qemuImg(path('.'), 'convert', '-f', 'raw', '-O', 'qcow2', path('disk.raw'), path('disk.qcow2'));
  });

  const variants = ['', '-o cluster_size=512', '-o compat=v2', '-o extended_l2=on', '-S 0', '-S 64k'];
  const more = ['-o cluster_size=4k', '-o cluster_size=2M', '-o refcount_bits=1', '-o lazy_refcounts=on', '-S 16M'];

  it.each(LONG ? [...variants, ...more] : variants)(
    'qcow2 %s written forward is clean, holds the disk, is read forward, and is the same on every run',
    (options) => {
      expectSame(
        `cowdisk convert -f raw -O qcow2 ${options} disk.raw - > out.qcow2 &&
       cowdisk convert -O qcow2 ${options} - - < disk.qcow2 | cmp - out.qcow2 &&
       qemu-img check -q out.qcow2 && qemu-img compare -q -f raw disk.raw out.qcow2 &&
       cat out.qcow2 | cowdisk convert -f qcow2 -O raw - - | cmp - disk.raw`,
      );
    },
  );

  it('a raw stream becomes an image file that grows with it', () => {
    expectSame(
      `for options in '' '-c' ${LONG ? "'-o cluster_size=4k' '-o extended_l2=on' '-o refcount_bits=64'" : ''}; do
         cat disk.raw | cowdisk convert -f raw -O qcow2 $options - grown.qcow2 &&
         qemu-img check -q grown.qcow2 && qemu-img compare -q -f raw disk.raw grown.qcow2 || exit 1
       done; cat disk.raw | cowdisk convert -f raw -O raw - grown.raw && cmp grown.raw disk.raw`,
    );
  });

  it('streams of every short length are taken for what they are', () => {
    expectSame(
      `for n in ${LONG ? '0 1 511 512 513 65536 1000001' : '0 513 1000001'}; do
         head -c $n disk.raw > cut.raw; cat cut.raw | cowdisk convert -f raw -O qcow2 - cut.qcow2 &&
         cat cut.raw | cowdisk convert -f raw -O qcow2 - - | cmp - <(cowdisk convert -f raw -O qcow2 cut.raw -) &&
         qemu-img check -q cut.qcow2 && qemu-img compare -q -f raw cut.raw cut.qcow2 || exit 1
       done`,
    );
  });

  it('pipes stand on both sides', () => {
    expectSame('cat disk.raw | cowdisk convert -f raw -O raw - - | cmp - disk.raw');
    expectSame(
      'cat disk.raw | cowdisk convert -f raw -O qcow2 - - | cowdisk convert -O raw - - | cmp - disk.raw',
      TWICE,
    );
    expectSame(
      `cat disk.raw | cowdisk convert -S 0 --input-size 80M -f raw -O qcow2 - - |
       cmp - <(cowdisk convert -S 0 -f raw -O qcow2 disk.raw -)`,
    );
  });

  it('only what differs from a backing file is sent', () => {
    expectSame(
      `qemu-img create -q -f qcow2 -b disk.raw -F raw over.qcow2 &&
       qemu-io -c 'write -q -P 7 1M 3M' -c 'write -q -z 40M 1M' -c 'write -q -P 0 10M 64k' over.qcow2 > log &&
       for compat in v2 v3; do
         cowdisk convert -O qcow2 -o compat=$compat -B disk.raw -F raw over.qcow2 - > again.qcow2 &&
         qemu-img check -q again.qcow2 && qemu-img compare -q over.qcow2 again.qcow2 &&
         cat again.qcow2 | cowdisk convert -O raw - again.raw && qemu-img compare -q -F raw over.qcow2 again.raw || exit 1
       done`,
    );
  });

  it('what has no order of writing goes through a temporary file', () => {
    expectSame(
      `cowdisk convert -c -O qcow2 disk.qcow2 - > small.qcow2 && qemu-img check -q small.qcow2 &&
       qemu-img compare -q small.qcow2 disk.qcow2 && cat small.qcow2 | cowdisk convert -O raw - - | cmp - disk.raw`,
      TARGET,
    );
    expectSame(
      `cat disk.raw | cowdisk convert -f raw -O qcow2 -o preallocation=metadata - pre.qcow2 &&
       qemu-img compare -q -f raw disk.raw pre.qcow2`,
      SIZE,
    );
    expectSame(
      `qemu-img create -q -f qcow2 -o cluster_size=4k late.qcow2 80M &&
       qemu-io -c 'write -q -P 9 40M 39M' -c 'write -q -P 8 0 39M' late.qcow2 > log &&
       cat late.qcow2 | cowdisk convert -O raw - late.raw && qemu-img compare -q -F raw late.qcow2 late.raw`,
      ORDER,
    );
  });

  it('cow, add-cow and luks go both ways', () => {
    expectSame(
      `cowdisk convert -f raw -O cow disk.raw - > disk.cow && cowdisk check -q -f cow disk.cow &&
       cowdisk compare -q -f raw -F cow disk.raw disk.cow &&
       cat disk.cow | cowdisk convert -f cow -O raw --input-size $(stat -c %s disk.cow) - - | cmp - disk.raw`,
    );
    expectSame('cat disk.cow | cowdisk convert -f cow -O raw - - | cmp - disk.raw', LENGTH);
    expectSame(
      `cowdisk convert -f raw -O add-cow -o image_file=disk.data disk.raw - > disk.add-cow &&
       cowdisk compare -q -f raw -F add-cow disk.raw disk.add-cow &&
       cat disk.add-cow | cowdisk convert -O raw - - | cmp - disk.raw`,
      TARGET,
    );
    const secret = '--object secret,id=key,data=word';
    expectSame(
      `cat disk.raw | cowdisk convert ${secret} -f raw -O luks -o key-secret=key,iter-time=10 - - > disk.luks &&
       cat disk.luks | cowdisk convert ${secret} --open-option key-secret=key -O raw - - | cmp - disk.raw &&
       head -c 1000001 disk.raw > odd.raw &&
       cowdisk convert ${secret} -f raw -O luks -o key-secret=key,iter-time=10 odd.raw - |
       cowdisk convert ${secret} --open-option key-secret=key -O raw - odd2.raw && qemu-img compare -q -f raw -F raw odd.raw odd2.raw`,
    );
  });

  it('what is cut off is an error and never zeros', () => {
    shell('cowdisk convert -O qcow2 disk.qcow2 - > whole.qcow2; cowdisk convert -c -O qcow2 disk.qcow2 packed.qcow2');
    for (const name of ['whole.qcow2', 'packed.qcow2']) {
      const length = readFileSync(path(name)).length;
      for (const end of LONG
        ? [length - 513, Math.floor(length / 2), 200_000, 131_072, 66_000, 40_000, 100]
        : [length - 513, 131_072, 40_000]) {
        const { status, text } = shell(`head -c ${end} ${name} | cowdisk convert -f qcow2 -O raw - cut-off.raw`);
        expect({ name, end, status, text }).toMatchObject({
          status: 1,
          text: expect.stringMatching(/^cowdisk: .*\n$/),
        });
        expect(existsSync(path('cut-off.raw'))).toBe(false);
      }
      const twice = shell(`head -c ${length - 513} ${name} | cowdisk convert -O qcow2 - - | wc -c`);
      expect(twice).toMatchObject({ status: 1 });
      expect(twice.text).toContain('belong to the image');
    }
    const short = shell('head -c 1000 disk.raw | cowdisk convert -f raw --input-size 1M - x.raw');
    expect(short).toMatchObject({ status: 1, text: expect.stringContaining('ends after 1000 bytes') });
    const long = shell('cat disk.raw | cowdisk convert -f raw --input-size 1M - x.raw');
    expect(long).toMatchObject({ status: 1, text: expect.stringContaining('more than the 1048576 bytes') });
    expect(existsSync(path('x.raw'))).toBe(false);
  });

  it('a reader that goes away is told of', () => {
    for (const format of ['raw', 'qcow2', 'cow']) {
      const { status, text } = shell(`cowdisk convert -f raw -O ${format} -S 0 disk.raw - | head -c 1000 > log`);
      expect({ status, text }).toEqual({
        status: 1,
        text: 'cowdisk: standard output: the program that reads it has ended before the image did (broken pipe)\n',
      });
    }
  });

  it.each([
    ['-n -f raw disk.raw -', "-n writes into an image that is there already; standard output ('-') holds none"],
    ['- - -O raw x.raw', "standard input ('-') can be one of the sources, not two"],
    ['--salvage - x.raw', '--salvage is for files: what a pipe cannot give cannot be read again'],
    ['--input-size 5 -f raw disk.raw x.raw', "--input-size is for standard input: give '-' as a source"],
    [
      '--temporary-directory /does/not -f raw - - -O qcow2',
      'could not make a temporary file in "/does/not": no such file or directory',
    ],
  ])('convert %s is refused in one line', (args, line) => {
    expect(shell(`cat disk.raw | cowdisk convert ${args} | wc -c > log`)).toEqual({
      status: 1,
      text: `cowdisk: ${line}\n`,
    });
  });

  it('called qemu-img, - is a file', () => {
    expectSame(
      `ln -sf '${PROGRAM}' qemu-img && ./qemu-img convert -f raw -O raw disk.raw - && cmp ./- disk.raw && rm ./-`,
    );
  });

  it('progress goes to standard error', () => {
    const { text } = shell('cowdisk convert -p -f raw -O raw disk.raw - 2>&1 >/dev/null');
    expect(text).toContain('(100.00/100%)');
    expect(shell('cat disk.raw | cowdisk convert --progress=json -f raw -O qcow2 - p.qcow2').text).toMatch(
      /"event":"done","phase":"convert","done":83886080,"total":83886080,"percent":100,/,
    );
  });

  it.each(['-O qcow2 - -', '-O raw - -', '-O qcow2 - stopped.qcow2'])(
    'Ctrl-C ends convert -f raw %s and leaves nothing',
    async (args) => {
      const child = spawn(process.execPath, [PROGRAM, 'convert', '--progress=json', '-f', 'raw', ...args.split(' ')], {
        cwd: path('.'),
        stdio: ['pipe', 'pipe', 'pipe'],
        env: { ...process.env, TMPDIR: path('temporary') },
      });
      // It waits for more of its input for ever, or for somebody to read its output.
      child.stdin.on('error', () => {});
      child.stdin.write(Buffer.alloc(70 * MiB, 4));
      let sent = false;
      child.stderr.on('data', (text: Buffer) => {
        if (!sent && text.includes('progress')) {
          sent = true;
          child.kill('SIGINT');
        }
      });
      const status = await new Promise((resolve) => child.on('exit', (code) => resolve(code)));
      expect(status).toBe(130);
      expect(readdirSync(path('temporary'))).toEqual([]);
      expect(readdirSync(path('.')).filter((name) => name.includes('stopped'))).toEqual([]);
    },
  );
});

/** Writes so many bytes, every fourth MiB zeros. */
const WRITER = `
const { createCipheriv } = require('node:crypto');
const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16), Buffer.alloc(16));
const zeros = Buffer.alloc(1 << 20);
function* pieces() { for (let i = 0; i < Number(process.argv[1]); i++) yield i % 4 === 3 ? zeros : cipher.update(zeros); }
require('node:stream').Readable.from(pieces()).pipe(process.stdout);
`;

describe('memory', () => {
  // The same bound for both: it does not follow the size of the stream.
  const bytes = LONG ? 2 * GiB : 256 * MiB;
  const LIMIT = 256 * MiB;

  it(`of ${bytes / MiB} MiB through both ends stays below ${LIMIT / MiB} MiB`, { timeout: 600_000 }, () => {
    requireBuild();
    writeFileSync(path('writer.cjs'), WRITER);
    const peak =
      'process.on("exit", () => require("node:fs").appendFileSync("peaks", process.resourceUsage().maxRSS + "\\n"));';
    writeFileSync(path('peak.cjs'), peak);
    const convert = `'${process.execPath}' -r ./peak.cjs '${PROGRAM}' convert`;
    const writer = `'${process.execPath}' -e "$(cat writer.cjs)" ${bytes / MiB}`;
    const { status, text } = shell(
      `${writer} | ${convert} -f raw -O qcow2 - - | ${convert} - -O raw - | cmp - <(${writer}) && echo the same`,
    );
    expect({ status, text: text.replace(/file '[^']*'/, "file '…'") }).toEqual({
      status: 0,
      text: `${TWICE}the same\n`,
    });
    const peaks = readFileSync(path('peaks'), 'utf8').trim().split('\n').map(Number);
    expect(peaks).toHaveLength(2);
    for (const kib of peaks) expect(kib * 1024).toBeLessThan(LIMIT);
  });
});
