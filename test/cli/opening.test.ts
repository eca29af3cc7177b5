/** What the command line says about opening images: guessed formats, other backing files, open options, references. */
import { writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { MemorySink } from '../../src/cli/console.ts';
import { loadDrivers } from '../../src/cli/drivers.ts';
import { run } from '../../src/cli/main.ts';
import { Objects } from '../../src/cli/objects.ts';
import { openImage } from '../../src/node.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const KiB = 1024;

interface Said {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

async function called(calledAs: string, ...args: string[]): Promise<Said> {
  const out = new MemorySink();
  const err = new MemorySink();
  const status = await run({ calledAs, args, out, err, env: {}, signal: new AbortController().signal });
  return { status, out: out.text, err: err.text };
}

const cowdisk = (...args: string[]): Promise<Said> => called('cowdisk', ...args);

const disk = path('disk.raw');
const moved = path('moved.raw');
const base = path('base.qcow2');
const top = path('top.qcow2');

beforeAll(async () => {
  writeFileSync(disk, new Uint8Array(128 * KiB).fill(1));
  writeFileSync(moved, new Uint8Array(128 * KiB).fill(2));
  await cowdisk('create', '-q', '-f', 'qcow2', base, '128k');
  await cowdisk('create', '-q', '-f', 'qcow2', '-u', '-b', path('gone.img'), '-F', 'raw', top, '128k');
});

describe('a format that is guessed to be raw', () => {
  const warning = `cowdisk: warning: '${disk}' is taken for raw, because nothing else matches; name the format to say so\n`;
  const target = path('target');

  it.each([
    ['info', ['info', disk]],
    ['info for programs', ['info', '--json', disk]],
    ['map', ['map', disk]],
    ['measure', ['measure', '-O', 'qcow2', disk]],
    ['convert', ['convert', '-O', 'qcow2', disk, target]],
    ['compare', ['compare', '-F', 'raw', disk, disk]],
  ])('is warned of by %s, in one line', async (_, args) => {
    expect(await cowdisk(...args)).toMatchObject({ status: 0, err: warning });
  });

  it('is warned of by check, which has nothing to look at', async () => {
    const { status, err } = await cowdisk('check', disk);
    expect(status).toBe(63);
    expect(err.startsWith(warning)).toBe(true);
  });

  it.each([
    ['info', ['info', '-f', 'raw', disk]],
    ['map', ['map', '-f', 'raw', disk]],
    ['measure', ['measure', '-f', 'raw', '-O', 'qcow2', disk]],
    ['convert', ['convert', '-f', 'raw', '-O', 'qcow2', disk, target]],
    ['compare', ['compare', '-f', 'raw', '-F', 'raw', disk, disk]],
    ['a quiet convert', ['convert', '-q', '-O', 'qcow2', disk, target]],
    ['a quiet compare', ['compare', '-q', disk, disk]],
  ])('is no matter where %s is told it, or told to be quiet', async (_, args) => {
    expect(await cowdisk(...args)).toMatchObject({ status: 0, err: '' });
  });

  it("is QEMU's to warn of only before writing, when called qemu-img", async () => {
    expect((await called('qemu-img', 'info', disk)).err).toBe('');
    const again = path('again.raw');
    writeFileSync(again, new Uint8Array(128 * KiB));
    const target = ['--target-image-opts', disk, `file.filename=${again}`];
    expect((await called('qemu-img', 'convert', '-n', ...target)).err).toContain('probing guessed raw');
  });

  it('is warned of where a backing file has no recorded format', async () => {
    const over = path('over.qcow2');
    await cowdisk('create', '-q', '-f', 'qcow2', '-b', disk, '-F', 'raw', over);
    const image = await openImage(over, { readOnly: false, references: 'allow' });
    await image.node.changeBacking({ name: disk });
    await image.close();
    const { err } = await cowdisk('map', over);
    expect(err).toBe(
      `cowdisk: warning: "${disk}": the image above it does not record its format, and nothing but raw matches: it is read as raw\n`,
    );
    expect((await called('qemu-img', 'map', over)).err).toBe('');
  });

  it('is found among the formats of QEMU only, when called qemu-img', async () => {
    const { formats, probed } = await loadDrivers({ program: 'qemu-img', qemu: true }, false, new Objects());
    expect(probed?.map(({ name }) => name)).toEqual(['qcow2', 'luks', 'raw']);
    expect(formats).toEqual(expect.arrayContaining([...(probed ?? [])]));
    const own = await loadDrivers({ program: 'cowdisk', qemu: false }, false, new Objects());
    expect(own.probed).toEqual(own.formats);
  });
});

describe('a format that is not one of QEMU', () => {
  it('must be named when called qemu-img, so that no guest can turn a raw disk into it', async () => {
    const [cow, over] = [path('disk.cow'), path('over-cow.qcow2')];
    await cowdisk('create', '-q', '-f', 'cow', '-b', moved, '-F', 'raw', cow);
    const formatOf = async (calledAs: string, ...args: string[]): Promise<string> =>
      JSON.parse((await called(calledAs, 'info', '--output=json', ...args, cow)).out).format;
    expect(await formatOf('cowdisk')).toBe('cow');
    expect(await formatOf('qemu-img')).toBe('raw');
    expect(await formatOf('qemu-img', '-f', 'cow')).toBe('cow');
    await cowdisk('create', '-q', '-f', 'qcow2', '-b', cow, '-F', 'cow', over);
    const image = await openImage(over, { readOnly: false, references: 'allow' });
    await image.node.changeBacking({ name: cow });
    await image.close();
    const chain = async (calledAs: string): Promise<string[]> => {
      const { out } = await called(calledAs, 'info', '--backing-chain', '--output=json', over);
      return (JSON.parse(out) as { format: string }[]).map(({ format }) => format);
    };
    expect(await chain('cowdisk')).toEqual(['qcow2', 'cow', 'raw']);
    expect(await chain('qemu-img')).toEqual(['qcow2', 'raw']);
    // What its own verbs find in between: without a name, nothing but QEMU's.
    const map = async (calledAs: string): Promise<string> => (await called(calledAs, 'map', over)).out;
    expect(await map('cowdisk')).toContain(moved);
    expect(await map('qemu-img')).not.toContain(moved);
    expect((await called('qemu-img', 'create', '-f', 'qcow2', '-b', cow, path('x.qcow2'))).err).toContain(
      'Detected format of raw.',
    );
    await rm(path('x.qcow2'), { force: true });
  });
});

describe('--with-backing', () => {
  const verbs: readonly (readonly [string, readonly string[]])[] = [
    ['info', ['info', top]],
    ['map', ['map', top]],
    ['check', ['check', top]],
    ['measure', ['measure', '-O', 'raw', top]],
    ['compare', ['compare', '-F', 'raw', top, moved]],
    ['convert', ['convert', '-O', 'raw', top, path('merged')]],
  ];

  it.each(verbs)('stands for the recorded file in %s', async (verb, args) => {
    const { status, err } = await cowdisk(...args, '--with-backing', moved);
    expect({ status, err }).toEqual({ status: 0, err: '' });
    if (verb !== 'info' && verb !== 'check') expect((await cowdisk(...args)).status).not.toBe(0);
  });

  it('is what is read', async () => {
    await cowdisk('convert', '-O', 'raw', '--with-backing', moved, top, path('merged'));
    expect((await cowdisk('compare', '-f', 'raw', '-F', 'raw', path('merged'), moved)).out).toBe(
      'Images are identical.\n',
    );
  });

  it('may have another format than raw, and shows in the chain', async () => {
    const { out } = await cowdisk(
      'info',
      '--backing-chain',
      top,
      '--with-backing',
      base,
      '--with-backing-format=qcow2',
    );
    expect(out).toContain(`backing file: ${path('gone.img')} (actual path: ${base})`);
    expect(out).toContain(`image: ${base}\nfile format: qcow2\n`);
  });

  it('is about the first image of compare', async () => {
    const args = ['compare', '-f', 'raw', moved, top, '--with-backing', moved];
    expect((await cowdisk(...args)).err).toContain('has no backing file that');
  });

  it('is refused for images without backing file, and so is its format alone', async () => {
    expect((await cowdisk('map', base, '--with-backing', moved)).err).toContain(
      `"${base}": has no backing file that "${moved}" could stand for`,
    );
    expect((await cowdisk('map', top, '--with-backing-format', 'raw')).err).toContain('there is no --with-backing');
  });
});

describe('open options', () => {
  it('are those of the format that is found, or named', async () => {
    for (const format of [[], ['-f', 'raw']]) {
      const { out } = await cowdisk(
        'info',
        ...format,
        '--open-option',
        'offset=64k',
        '--open-option',
        'size=512',
        disk,
      );
      expect(out).toContain('virtual size: 512 B');
    }
  });

  it.each([
    [['--open-option', 'offest=1'], `raw "${disk}": unknown option 'offest'; did you mean 'offset'?`],
    [['--open-option', 'offset=1x'], `raw "${disk}": option offset: '1x' is not a size`],
    [['--open-option', 'offset'], `raw "${disk}": option offset: 'on' is not a size`],
    [['--cow-layout', 'v3'], `--cow-layout: '${disk}' is raw, which has no layouts to choose from`],
  ])('that it does not have are refused: %s', async (options, message) => {
    const { status, err } = await cowdisk('info', '-f', 'raw', ...options, disk);
    expect(status).toBe(1);
    expect(err).toContain(message);
  });

  it('may be the layout of a cow image', async () => {
    const cow = path('layout.cow');
    await cowdisk('create', '-q', '-f', 'cow', '-o', 'layout=v3', '-b', moved, '-F', 'raw', cow);
    for (const options of [
      ['--cow-layout', 'v3'],
      ['--open-option', 'layout=v3'],
      ['--cow-layout=v3', '-f', 'cow'],
    ]) {
      const { out, err } = await cowdisk('info', ...options, cow);
      expect([out.includes('layout: v3\n'), err]).toEqual([true, '']);
    }
    expect((await cowdisk('info', '--cow-layout', 'v9', cow)).err).toContain('option layout: expected one of');
    expect((await cowdisk('info', '--cow-layout', 'v1-le32', cow)).status).toBe(1);
  });

  it('are about the first image of compare, and every source of convert', async () => {
    const options = ['--open-option', 'size=64k', '-f', 'raw'];
    expect((await cowdisk('compare', '-s', ...options, '-F', 'raw', disk, disk)).out).toContain('size mismatch');
    const joined = path('joined');
    await cowdisk('convert', ...options, disk, disk, joined);
    expect((await cowdisk('info', '-f', 'raw', joined)).out).toContain('virtual size: 128 KiB');
  });

  it('of --image-opts are refused in any format that does not have them', async () => {
    const { err } = await called('qemu-img', 'info', '--image-opts', `file.filename=${base},foo=1`);
    expect(err).toContain("Block format 'qcow2' does not support the option 'foo'");
  });

  it('are options of cowdisk, not of qemu-img', async () => {
    for (const option of ['--open-option', '--with-backing', '--cow-layout']) {
      expect((await called('qemu-img', 'info', option, 'x', disk)).err).toContain(`unrecognized option '${option}'`);
    }
  });
});

describe('info with --references', () => {
  it('follows the chain as far as it may', async () => {
    const [lower, upper] = [path('lower.qcow2'), path('upper.qcow2')];
    await cowdisk('create', '-q', '-f', 'qcow2', lower, '1M');
    await cowdisk('create', '-q', '-f', 'qcow2', '-b', lower, '-F', 'qcow2', upper);
    const free = await cowdisk('info', '--backing-chain', upper);
    expect(free.status).toBe(0);
    const { status, err } = await cowdisk('info', '--backing-chain', '--references=same-directory', upper);
    expect(status).toBe(1);
    expect(err).toContain('same-directory');
    expect((await cowdisk('info', '--references=deny', upper)).status).toBe(0);
  });
});
