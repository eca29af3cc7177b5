/** commit, rebase and detach as people use them: what they say, return and leave, interrupted ones included. */
import { existsSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { beforeEach, describe, expect, it } from 'vitest';
import { Interruption, MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { openImage } from '../../src/node.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const KiB = 1024;
const MiB = 1024 * KiB;

interface Said {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

async function called(
  calledAs: string,
  args: readonly string[],
  how: { readonly signal?: AbortSignal; readonly err?: MemorySink } = {},
): Promise<Said> {
  const out = new MemorySink();
  const { err = new MemorySink(), signal = new AbortController().signal } = how;
  const status = await run({ calledAs, args, out, err, env: {}, signal });
  return { status, out: out.text, err: err.text };
}

const cowdisk = (...args: string[]): Promise<Said> => called('cowdisk', args);

const [base, top] = [path('base.raw'), path('top.qcow2')];

async function write(name: string, offset: number, length: number, fill: number): Promise<void> {
  await using image = await openImage(name, { readOnly: false, references: 'allow' });
  await image.write(offset, new Uint8Array(length).fill(fill));
}

beforeEach(async () => {
  writeFileSync(base, new Uint8Array(4 * MiB).fill(1));
  await cowdisk('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', top);
  await write(top, 2 * MiB, 300 * KiB, 2);
});

/** Interrupts at the n-th word of progress. */
function interrupted(name: 'SIGINT' | 'SIGTERM', nth = 1) {
  const controller = new AbortController();
  let words = 0;
  class Interrupting extends MemorySink {
    override write(text: string): void {
      super.write(text);
      if (text.startsWith('{"event":"progress"') && ++words === nth) controller.abort(new Interruption(name));
    }
  }
  return { signal: controller.signal, err: new Interrupting() };
}

describe('commit', () => {
  it('says that it is done, or nothing', async () => {
    expect(await cowdisk('commit', top)).toEqual({ status: 0, out: 'Image committed.\n', err: '' });
    expect(readFileSync(base)[2 * MiB]).toBe(2);
    expect(await cowdisk('commit', '-q', top)).toEqual({ status: 0, out: '', err: '' });
  });

  it('shows its progress for programs', async () => {
    const { err } = await cowdisk('commit', '--progress=json', top);
    const lines = err.trimEnd().split('\n');
    expect(JSON.parse(lines.at(-1) as string)).toMatchObject({ event: 'done', phase: 'commit', done: 4 * MiB });
  });

  it('keeps to the policy of references', async () => {
    for (const policy of ['deny', 'same-directory']) {
      const { status, err } = await cowdisk('commit', `--references=${policy}`, top);
      expect(status).toBe(1);
      expect(err).toContain(policy);
    }
    expect(readFileSync(base)[2 * MiB]).toBe(1);
  });

  it('commits into the file of --with-backing', async () => {
    const moved = path('moved.raw');
    writeFileSync(moved, new Uint8Array(4 * MiB).fill(1));
    expect((await cowdisk('commit', '--with-backing', moved, top)).status).toBe(0);
    expect([readFileSync(base)[2 * MiB], readFileSync(moved)[2 * MiB]]).toEqual([1, 2]);
  });

  it('when interrupted leaves the image reading as before, says so, and can be done again', async () => {
    const { status, err } = await called('cowdisk', ['commit', '--progress=json', top], interrupted('SIGINT'));
    expect(status).toBe(130);
    expect(err).toContain(`cowdisk: interrupted: '${top}' reads as before; commit it again to bring it to its end\n`);
    const image = await openImage(top, { references: 'allow' });
    expect([...(await image.read(2 * MiB - 1, 2)), ...(await image.read(2 * MiB + 300 * KiB - 1, 2))]).toEqual([
      1, 2, 2, 1,
    ]);
    await image.close();
    expect((await cowdisk('commit', top)).status).toBe(0);
  });
});

describe('commit of a cow image, which records the time of change of its base', () => {
  const cow = path('disk.cow');
  const past = new Date('2005-06-07T08:09:10Z');

  beforeEach(async () => {
    utimesSync(base, past, past);
    await cowdisk('create', '-q', '-f', 'cow', '-b', base, '-F', 'raw', cow);
    await write(cow, MiB, 8 * KiB, 4);
  });

  it('brings the record up to date', async () => {
    expect(await cowdisk('commit', cow)).toMatchObject({ status: 0, err: '' });
    expect(statSync(base).mtime.getTime()).toBeGreaterThan(past.getTime());
    const { out } = await cowdisk('info', cow);
    expect(out).toContain('backing as recorded: yes\n');
    expect(readFileSync(base)[MiB]).toBe(4);
    await write(cow, 0, KiB, 6);
  });

  it('brings it up to date when it is interrupted, too', async () => {
    await write(cow, 0, 4 * MiB, 4);
    const args = ['commit', '--progress=json', '-r', '4M', cow];
    expect((await called('cowdisk', args, interrupted('SIGINT', 2))).status).toBe(130);
    expect(statSync(base).mtime.getTime()).toBeGreaterThan(past.getTime());
    expect(await cowdisk('commit', cow)).toMatchObject({ status: 0, err: '' });
  });

  it('is refused over a base that was changed since, unless told otherwise, and so is the base left alone', async () => {
    utimesSync(base, past, new Date('2007-01-01T00:00:00Z'));
    const { status, err } = await cowdisk('commit', cow);
    expect(status).toBe(1);
    expect(err).toContain('is not as recorded');
    expect(readFileSync(base)[MiB]).toBe(1);
    expect((await cowdisk('map', cow)).err).toContain('cowdisk: warning: cow');
    expect((await cowdisk('commit', '--open-option', 'ignore-mismatch', cow)).status).toBe(0);
    expect(readFileSync(base)[MiB]).toBe(4);
  });

  it('can be allowed by recording the base anew', async () => {
    utimesSync(base, past, new Date('2007-01-01T00:00:00Z'));
    expect(await cowdisk('rebase', '-u', '-b', base, cow)).toMatchObject({ status: 0, err: '' });
    expect((await cowdisk('commit', cow)).status).toBe(0);
  });
});

describe('rebase', () => {
  it('is silent, and keeps the content', async () => {
    const other = path('other.raw');
    writeFileSync(other, new Uint8Array(4 * MiB).fill(3, MiB, 2 * MiB));
    await cowdisk('convert', '-O', 'raw', top, path('before.raw'));
    expect(await cowdisk('rebase', '-b', other, '-F', 'raw', top)).toEqual({ status: 0, out: '', err: '' });
    expect((await cowdisk('compare', '-F', 'raw', top, path('before.raw'))).out).toBe('Images are identical.\n');
    expect((await cowdisk('info', top)).out).toContain(`backing file: ${other}\n`);
    expect(await cowdisk('rebase', '-b', '', top)).toEqual({ status: 0, out: '', err: '' });
    expect((await cowdisk('compare', '-F', 'raw', top, path('before.raw'))).out).toBe('Images are identical.\n');
  });

  it('finds a moved base, and records it', async () => {
    const moved = path('elsewhere.raw');
    writeFileSync(moved, new Uint8Array(4 * MiB).fill(1));
    await cowdisk('rebase', '-u', '-b', path('gone.raw'), '-F', 'raw', top);
    expect((await cowdisk('map', top)).status).toBe(1);
    expect((await cowdisk('rebase', '-b', moved, '-F', 'raw', top)).status).toBe(1);
    const args = ['rebase', '--with-backing', moved, '-b', moved, '-F', 'raw', top];
    expect(await cowdisk(...args)).toMatchObject({ status: 0, err: '' });
    expect((await cowdisk('map', top)).status).toBe(0);
  });

  it.each([
    [['-F', 'raw'], 'Must specify backing file (-b) or use unsafe mode (-u)'],
    [['-b', base], `the format of the new backing file "${base}" must be given`],
    [['-b', base, '-F', 'nofmt'], "unknown format 'nofmt'"],
    [['-b', path('nothing'), '-F', 'raw'], `could not open backing file "${path('nothing')}"`],
    [['-b', top, '-F', 'qcow2'], 'leads back to the image: a loop'],
    [['-c', '-u', '-b', base, '-F', 'raw'], '--compress has no effect with -u'],
  ])('%s is refused', async (args, message) => {
    const bytes = readFileSync(top);
    const { status, err } = await cowdisk('rebase', ...args, top);
    expect(status).toBe(1);
    expect(err).toContain(message);
    expect(readFileSync(top).equals(bytes)).toBe(true);
  });

  it('when interrupted leaves the image over its old base, says so, and can be done again', async () => {
    const other = path('third.raw');
    writeFileSync(other, new Uint8Array(4 * MiB).fill(3));
    const args = ['rebase', '--progress=json', '-b', other, '-F', 'raw', top];
    const { status, err } = await called('cowdisk', args, interrupted('SIGTERM'));
    expect(status).toBe(143);
    expect(err).toContain(`interrupted: '${top}' reads as before, over its old backing file`);
    expect((await cowdisk('info', top)).out).toContain(`backing file: ${base}\n`);
    expect((await cowdisk(...args)).status).toBe(0);
    await using image = await openImage(top, { references: 'allow' });
    expect([...(await image.read(2 * MiB - 1, 2))]).toEqual([1, 2]);
  });
});

describe('detach', () => {
  const [image, data] = [path('disk.add-cow'), path('disk.img')];

  beforeEach(async () => {
    const options = ['-o', `image_file=${data}`, '-b', base, '-F', 'raw'];
    writeFileSync(data, '');
    await cowdisk('create', '-q', '-f', 'add-cow', ...options, image, '4M');
    await write(image, MiB, 64 * KiB, 5);
  });

  it('says how much is missing, with status 1', async () => {
    const missing = 4 * MiB - 64 * KiB;
    expect(await cowdisk('detach', image)).toEqual({
      status: 1,
      out: '',
      err: `cowdisk: '${image}' does not hold ${missing} bytes (3.94 MiB) of its disk; --fill copies them from the backing file\n`,
    });
  });

  it('fills, and says which file stands alone', async () => {
    const filled = await cowdisk('detach', '--fill', image);
    expect(filled).toEqual({
      status: 0,
      out: `${data} stands alone now, as raw.\n3.94 MiB were copied from the backing file.\n`,
      err: '',
    });
    const expected = new Uint8Array(4 * MiB).fill(1);
    expected.fill(5, MiB, MiB + 64 * KiB);
    expect(readFileSync(data).equals(expected)).toBe(true);
  });

  it('tells programs the same, and removes what is needed no longer', async () => {
    const { out, status } = await cowdisk('detach', '--fill', '--remove', '--json', image);
    expect(status).toBe(0);
    expect(JSON.parse(out)).toEqual({
      filename: data,
      format: 'raw',
      filled: 4 * MiB - 64 * KiB,
      removed: true,
    });
    expect([existsSync(image), existsSync(data)]).toEqual([false, true]);
  });

  it('is for formats with a data file only', async () => {
    const { status, err } = await cowdisk('detach', top);
    expect(status).toBe(1);
    expect(err).toContain('has no data file of its own that could stand alone');
    expect((await cowdisk('detach', base)).err).toContain('is taken for raw');
  });

  it('when interrupted leaves an image that can be detached later', async () => {
    const args = ['detach', '--fill', '--remove', '--progress=json', image];
    const { status, err } = await called('cowdisk', args, interrupted('SIGINT'));
    expect(status).toBe(130);
    expect(err).toContain(`interrupted: '${image}' is as useful as it was`);
    expect(existsSync(image)).toBe(true);
    expect((await cowdisk(...args)).status).toBe(0);
  });
});
