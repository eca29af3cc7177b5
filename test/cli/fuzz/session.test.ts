/** The fuzzer finds what is planted, by the seed, and cleans up behind itself. */
import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { execute } from '../../../src/cli/fuzz/execute.ts';
import { parseCommand } from '../../../src/cli/fuzz/template.ts';
import { IMAGE_NAME } from '../../../src/tools/fuzz/specimen.ts';
import { scratch } from '../../support/scratch.ts';
import { CRASH, FINE, fuzz, reader } from './bench.ts';

const path = scratch();
const directory = (): string => mkdtempSync(path('run-'));
const PLANTED = fileURLToPath(new URL('planted.mjs', import.meta.url));

/** A field of each format, and the values of it that a reader does not stand. */
const BUGS: readonly (readonly [format: string, field: string, hits: (image: Buffer) => boolean])[] = [
  ['qcow2', 'header.l1-size', (image) => image.length >= 40 && image.readUInt32BE(36) > 0x10_0000],
  ['qcow2', 'header.cluster-bits', (image) => image.length >= 24 && image.readUInt32BE(20) > 30],
  ['cow', 'cow.magic', (image) => image.length >= 4 && !/^(OOOM|MOOO)$/.test(image.toString('latin1', 0, 4))],
  ['add-cow', 'add-cow.magic', (image) => image.length >= 3 && !/^(ADD|ACO)$/.test(image.toString('latin1', 0, 3))],
  ['luks', 'luks.payload', (image) => image.length >= 108 && image.readUInt32BE(104) > 0x1000_0000],
];

describe('a planted bug', () => {
  it.each(BUGS)(
    'in a reader of %s is found within 200 seeds, and shrunk to %s',
    { timeout: 120_000 },
    async (format, field, hits) => {
      const execute = reader((image) => (hits(image) ? CRASH : FINE));
      const { findings, images } = await fuzz(directory(), { format, execute, enough: 1, density: 5 });
      expect(images).toBeLessThanOrEqual(200);
      expect(findings.length).toBe(1);
      const [{ damages, verdict, subject }] = findings as [(typeof findings)[0]];
      expect(verdict.kind).toBe('crash');
      expect(damages.map((damage) => (damage.kind === 'set' ? damage.what : damage.kind))).toEqual([field]);
      expect(hits(Buffer.from(subject.files.get(IMAGE_NAME) as Uint8Array))).toBe(true);
    },
  );

  it('in a real program is found within 200 seeds', { timeout: 120_000 }, async () => {
    const commands = [parseCommand(`'${process.execPath}' '${PLANTED}' crash $image`)];
    const changes = { format: 'qcow2', execute, commands, enough: 1, lanes: 2, density: 10 };
    const ran = await fuzz(directory(), changes);
    expect(ran.images).toBeLessThanOrEqual(200);
    expect(ran.findings.map(({ verdict }) => verdict.reason)).toEqual(['ended by SIGSEGV']);
    expect(ran.findings[0]?.damages.map((damage) => damage.kind === 'set' && damage.what)).toEqual(['header.l1-size']);
  });

  it('is called what it does', { timeout: 120_000 }, async () => {
    const crash = reader((image) => (BUGS[0]?.[2](image) === true ? CRASH : FINE));
    const { findings } = await fuzz(directory(), { format: 'qcow2', execute: crash, enough: 1, density: 10 });
    const firstSeed = findings[0]?.seed ?? 0;
    for (const bug of ['hang', 'status', 'message', 'memory', 'growth']) {
      const commands = [parseCommand(`'${process.execPath}' '${PLANTED}' ${bug} $image`)];
      const limits = { seconds: bug === 'hang' ? 1 : 60, memory: 2 ** 28, growth: 2 ** 24 };
      const changes = { execute, commands, limits, firstSeed, count: 1, shrink: false, density: 10 };
      const ran = await fuzz(directory(), { format: 'qcow2', ...changes });
      expect(ran.findings.map(({ verdict }) => verdict.kind)).toEqual([bug]);
    }
  });
});

describe('a run', () => {
  /** What each run was given. */
  const record = async (changes: object): Promise<string[]> => {
    const seen: string[] = [];
    const changed = {
      execute: async (argv: readonly string[], where: string) => {
        const files = readdirSync(where).sort();
        const hash = createHash('sha256');
        for (const name of files) hash.update(name).update(readFileSync(join(where, name)));
        seen.push([...argv.map((word) => word.replaceAll(where, '')), ...files, hash.digest('hex')].join(' '));
        return FINE;
      },
      commands: ['a $image $offset', 'b $open $length', 'c $object $size', 'd $output'].map(parseCommand),
      count: 2,
      picked: 2,
      ...changes,
    };
    await fuzz(directory(), changed);
    return seen;
  };

  it('is the same for the same seeds, however many commands run at once', async () => {
    const once = await record({});
    expect(once.length).toBe(2 * 4 * 2);
    expect(await record({})).toEqual(once);
    expect(new Set(await record({ lanes: 3 }))).toEqual(new Set(once));
    expect(await record({ firstSeed: 3 })).not.toEqual(once);
    expect(await record({ density: 20 })).not.toEqual(once);
    expect(await record({ firstSeed: 2, count: 1 })).toEqual(once.slice(8));
  });

  it('leaves no files, and is ended by an interruption that is no finding', async () => {
    const where = directory();
    const controller = new AbortController();
    let runs = 0;
    const { interrupted, images, findings } = await fuzz(where, {
      signal: controller.signal,
      execute: async () => {
        if (++runs === 5) controller.abort();
        return runs < 5 ? FINE : CRASH;
      },
    });
    expect({ interrupted, findings, images }).toEqual({ interrupted: true, findings: [], images: 5 });
    expect(readdirSync(where)).toEqual([]);
  });

  it('tells one mistake once, and another one as well', async () => {
    const told = await fuzz(directory(), {
      count: 5,
      shrink: false,
      format: 'cow',
      execute: reader((image) => ({ ...FINE, status: image.length % 2 === 0 ? 77 : 78, stderr: `at ${image.length}` })),
    });
    expect(told.findings.map(({ verdict }) => verdict.reason)).toEqual(['ended with status 77']);
    const two = await fuzz(directory(), { count: 5, enough: 1, format: 'cow', execute: async () => CRASH });
    expect(two.images).toBe(1);
  });

  it('ends when a program cannot be run', async () => {
    const commands = [parseCommand('/no/such/program $image')];
    await expect(fuzz(directory(), { execute, commands, lanes: 2 })).rejects.toThrow('cannot be run');
  });
});
