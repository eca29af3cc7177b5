import { existsSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { MemorySink } from '../../../src/cli/console.ts';
import { run } from '../../../src/cli/main.ts';
import { scratch } from '../../support/scratch.ts';

const path = scratch();

async function cowdisk(...args: string[]): Promise<{ status: number; out: string; err: string }> {
  const out = new MemorySink();
  const err = new MemorySink();
  const { signal } = new AbortController();
  const status = await run({ calledAs: 'cowdisk', args: ['fuzz', ...args], out, err, env: {}, signal });
  return { status, out: out.text, err: err.text };
}

/** A command that dies of every image. */
const DIES = `sh -c 'kill -ABRT $$$$'`;

describe('cowdisk fuzz', () => {
  it('ends with 0 and says how much was tried when nothing was found', async () => {
    expect(await cowdisk('-f', 'cow', '-n', '3', '-c', 'true $image')).toEqual({
      status: 0,
      out: '3 images, 3 runs: nothing found\n',
      err: '',
    });
    expect(await cowdisk('-f', 'cow', '-n', '1', '-q', '-c', 'true')).toEqual({ status: 0, out: '', err: '' });
  });

  it('tells, keeps and replays what it finds, and ends with 1', async () => {
    const keep = path('findings');
    const { status, out } = await cowdisk('-f', 'qcow2', '-n', '3', '-j', '1', '--shrink', '--keep', keep, '-c', DIES);
    expect(status).toBe(1);
    const [directory = ''] = readdirSync(keep);
    expect(directory).toBe('qcow2-1-crash');
    expect(out).toContain(`qcow2 seed 1: crash: ended by SIGABRT\n  command: ${DIES}\n  image: cluster_size `);
    expect(out).toContain(`  kept; again: cowdisk fuzz --replay ${keep}/qcow2-1-crash\n`);
    expect(out).toContain('1 finding, met 3 times\n');
    const kept = join(keep, directory);
    const facts = JSON.parse(readFileSync(join(kept, 'finding.json'), 'utf8'));
    expect(facts).toMatchObject({ format: 'qcow2', seed: 1, density: 1, kind: 'crash' });
    expect(facts.damages.length).toBe(1);
    expect(facts.files.every((name: string) => existsSync(join(kept, name)))).toBe(true);

    const again = await cowdisk('--replay', kept);
    expect(again.status).toBe(1);
    expect(again.out).toContain('crash: ended by SIGABRT\n  damage: ');
    expect((await cowdisk('--replay', join(kept, 'finding.json'))).status).toBe(1);
    // another program, on the same image
    const fine = await cowdisk('--replay', kept, '-c', `cmp $image ${join(kept, 'image')}`, '--json');
    expect(fine).toMatchObject({ status: 0, err: '' });
    expect(JSON.parse(fine.out)).toEqual({ event: 'replay', command: ['cmp', '$image', join(kept, 'image')] });

    // what is there is not overwritten
    await cowdisk('-f', 'qcow2', '-n', '1', '--keep', keep, '-c', DIES);
    expect(readdirSync(keep).sort()).toEqual(['qcow2-1-crash', 'qcow2-1-crash-2']);
  });

  it('tells programs one thing on each line', async () => {
    const { out, status } = await cowdisk(
      '-f',
      'luks',
      '-n',
      '2',
      '-j',
      '1',
      '--json',
      '-c',
      DIES,
      '-c',
      'true',
      '--seed',
      '9',
    );
    const lines = out
      .trimEnd()
      .split('\n')
      .map((text) => JSON.parse(text));
    expect(status).toBe(1);
    expect(lines.map(({ event }) => event)).toEqual(['finding', 'summary']);
    expect(lines[0]).toMatchObject({
      format: 'luks',
      seed: 9,
      kind: 'crash',
      command: ['sh', '-c', 'kill -ABRT $$$$'],
    });
    expect(lines[1]).toMatchObject({ images: 2, runs: 4, interrupted: false, findings: [{ times: 2 }] });
  });

  it('takes other statuses and lines than usual for a finding, when it is told to', async () => {
    const fails = ['-f', 'cow', '-n', '1', '-c', `sh -c 'echo "oh no" >&2; exit 7'`];
    expect((await cowdisk(...fails)).out).toContain('status: ended with status 7');
    expect((await cowdisk(...fails, '--allow-status', '0,7')).status).toBe(0);
    expect((await cowdisk(...fails, '--allow-status', '0,7', '--match', '^oh')).out).toContain('message: oh no');
  });

  it('reads commands from a file, and draws some of them', async () => {
    const file = path('commands.json');
    writeFileSync(file, JSON.stringify(['true', ['true', '$image'], 'true $format', 'true $size']));
    expect((await cowdisk('-f', 'cow', '-n', '2', '--commands', file)).out).toContain('2 images, 8 runs');
    expect((await cowdisk('-f', 'cow', '-n', '2', '--commands', file, '--pick', '3')).out).toContain(
      '2 images, 6 runs',
    );
  });

  it('begins no image when the time is over, or enough was found', async () => {
    expect((await cowdisk('-t', '0.000001', '-c', 'true')).out).toBe('0 images, 0 runs: nothing found\n');
    expect((await cowdisk('-f', 'cow', '--enough', '1', '-j', '1', '-c', DIES)).out).toContain('1 image, 1 run');
  });

  it('makes images without running anything, the same each time', async () => {
    const [one, two] = [mkdtempSync(path('made-')), mkdtempSync(path('made-'))];
    expect((await cowdisk('--make', one, '-n', '2', '--seed', '4', '-f', 'cow,add-cow')).status).toBe(0);
    expect(await cowdisk('--make', two, '-n', '2', '--seed', '4', '-f', 'cow,add-cow', '-q')).toMatchObject({
      out: '',
    });
    expect(readdirSync(one).sort()).toEqual(['add-cow-4', 'add-cow-5', 'cow-4', 'cow-5']);
    for (const name of readdirSync(one)) {
      for (const file of readdirSync(join(one, name))) {
        const [a, b] = [one, two].map((where) => readFileSync(join(where, name, file)));
        expect(Buffer.compare(a as Buffer, b as Buffer), `${name}/${file}`).toBe(0);
      }
      const [sound, damaged] = ['image.sound', 'image'].map((file) => readFileSync(join(one, name, file)));
      expect(Buffer.compare(sound as Buffer, damaged as Buffer)).not.toBe(0);
    }
    expect((await cowdisk('--replay', join(one, 'cow-4'), '-c', 'true $image')).status).toBe(0);
    expect((await cowdisk('--make', one, '-n', '1', '--seed', '4', '-f', 'cow')).err).toContain('exists already');
  });

  it.each([
    [['-f', 'vmdk'], "cannot make images of format 'vmdk'; there are qcow2, cow, add-cow, luks"],
    [['-c', 'x $what'], 'there is no $what; there are $image'],
    [['-c', ''], 'a command has one word at least'],
    [['--count', '0'], "--count: expected a whole number from 1 on, not '0'"],
    [['--seed', '-1'], "--seed: expected a whole number from 0 on, not '-1'"],
    [['--density', '200'], "--density: expected a number up to 100, not '200'"],
    [['--timeout', 'soon'], "--timeout: expected a number up to 1000000, not 'soon'"],
    [['--max-memory', 'x'], "invalid max-memory 'x': expected a number of bytes"],
    [['--replay', 'x', '--seed', '4'], '--seed has no meaning with --replay'],
    [['--make', 'x', '-c', 'true'], '--command has no meaning with --make'],
    [['--make', 'x', '--replay', 'x'], '--replay has no meaning with --make'],
    [['--match', '('], '--match: Invalid regular expression'],
    [['--allow-status', '0,x'], '--allow-status: expected numbers from 0 to 255'],
    [['--commands', '/no/such/file'], '--commands: ENOENT'],
    [['--replay', '/no/such/directory'], '--replay: ENOENT'],
    [['image.qcow2'], 'Unexpected argument: image.qcow2'],
    [['--nonsense'], 'unrecognized option'],
    [['-n', '1', '-f', 'cow', '-c', '/no/such/program'], "'/no/such/program': cannot be run: "],
  ])('answers %j in one line, and ends with 2', async (args, message) => {
    const { status, err, out } = await cowdisk(...args);
    expect(status).toBe(2);
    expect(err).toMatch(/^cowdisk: /);
    expect(err).toContain(message);
    expect(out).toBe('');
  });
});
