/** What every verb owes its users, by the table of verbs: help, a place in the documentation that a test runs, JSON or a word on why there is none, and for each
 *  mistake in a command line one line that says what to do. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { OptionSpec } from '../../src/cli/args.ts';
import { MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { commandLineReference } from '../../src/cli/reference.ts';
import type { VerbSpec } from '../../src/cli/verbs/common.ts';
import { allVerbSpecs, optionsFor } from '../../src/cli/verbs/index.ts';
import { createImage } from '../../src/node.ts';
import { fencedBlocks, ROOT, shownCommands } from '../docs/run.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const disk = path('disk.qcow2');
const overlay = path('overlay.qcow2');
const missing = path('missing.qcow2');
const specs = await allVerbSpecs();
const cowdisk = { program: 'cowdisk', qemu: false } as const;

interface Said {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

async function cli(...args: string[]): Promise<Said> {
  const out = new MemorySink();
  const err = new MemorySink();
  const input = (async function* () {})();
  const status = await run({
    calledAs: 'cowdisk',
    args,
    out,
    err,
    env: {},
    signal: new AbortController().signal,
    input,
  });
  return { status, out: out.text, err: err.text };
}

beforeAll(async () => {
  await createImage(disk, { format: 'qcow2', size: 65536 });
  await createImage(overlay, { format: 'qcow2', backing: { name: disk, format: 'qcow2' }, references: 'allow' });
});

/** What a verb needs besides the mistake. */
interface Line {
  /** A command line that is right, but for its files. */
  readonly files: (name: string) => readonly string[];
  /** Operands of which there is one too many. */
  readonly surplus?: readonly string[];
  /** Runs without operands. */
  readonly runsAlone?: boolean;
  /** Status of a mistake, and of a file that is not there. */
  readonly mistake?: number;
  readonly unopened?: number;
}

const ONE: Line = { files: (name) => [name], surplus: ['a', 'b'] };
const LINES: Readonly<Record<string, Line>> = {
  amend: { files: (name) => ['-o', 'compat=v3', name], surplus: ['-o', 'compat=v3', 'a', 'b'] },
  apply: { files: (name) => [disk, name], surplus: ['a', 'b', 'c'] },
  audit: { files: (name) => [name] },
  bench: ONE,
  bitmap: { files: (name) => ['--add', name, 'b'], surplus: ['--add', 'a', 'b', 'c'] },
  check: ONE,
  checksum: { files: (name) => [name] },
  commit: ONE,
  compare: { files: (name) => [name, disk], surplus: ['a', 'b', 'c'], unopened: 2 },
  convert: { files: (name) => [name, path('target')] },
  create: { files: (name) => ['-f', 'qcow2', '-b', name, '-F', 'qcow2', path('target')], surplus: ['a', '1M', 'c'] },
  dd: { files: (name) => [`if=${name}`, `of=${path('target')}`], surplus: ['a'] },
  delta: { files: (name) => [name, disk, path('target')], surplus: ['a', 'b', 'c', 'd'] },
  detach: ONE,
  diff: { files: (name) => [name, disk], surplus: ['a', 'b', 'c'], mistake: 2, unopened: 2 },
  fuzz: { files: (name) => ['--replay', name], surplus: ['a'], runsAlone: true, mistake: 2 },
  info: ONE,
  io: { ...ONE, files: (name) => ['-c', 'quit', name], runsAlone: true },
  map: ONE,
  measure: { files: (name) => [name], surplus: ['a', 'b'] },
  nbd: { files: (name) => ['serve', name] },
  rebase: { files: (name) => ['-u', '-b', '', name], surplus: ['-u', '-b', '', 'a', 'b'] },
  recover: { files: (name) => [name, path('target')], surplus: ['a', 'b', 'c'] },
  resize: { files: (name) => [name, '1M'], surplus: ['a', 'b', '1M'] },
  snapshot: ONE,
};

const lineOf = ({ name }: VerbSpec): Line => {
  const line = LINES[name];
  if (line === undefined) throw new Error(`a new verb: add '${name}' to LINES`);
  return line;
};

/** One line that names the program; then maybe where help is to be had; nothing else, and nothing on standard output. */
function expectOneLine({ out, err, status }: Said, wanted: number, verb: string): void {
  expect([out, status, err]).toEqual(['', wanted, expect.any(String)]);
  const [first, ...rest] = err.trimEnd().split('\n');
  expect(first).toMatch(/^cowdisk: \S/);
  expect(first).not.toMatch(/internal error|undefined|\[object|TypeError| at .*:\d+:\d+/);
  expect(['', `Try 'cowdisk help ${verb}' for more information`], err).toContain(rest.join('\n'));
}

/** As {@link expectOneLine}, and the way to help is there. */
function expectHint(said: Said, wanted: number, verb: string): void {
  expectOneLine(said, wanted, verb);
  expect(said.err).toContain(`\nTry 'cowdisk help ${verb}' for more information\n`);
}

const named = (option: OptionSpec): string => {
  const long = option.long ?? option.moreLong?.[0];
  return long === undefined ? `-${option.short}` : `--${long}`;
};

const acting = (spec: VerbSpec): readonly OptionSpec[] =>
  optionsFor(spec, cowdisk).filter(({ support, value }) => support === 'acts' && value !== undefined);

/** Options whose value is a number, of bytes or of anything else. */
const isNumber = ({ value, key }: OptionSpec): boolean =>
  /^(SIZE|N|COUNT|DEPTH|STEP|OFFSET|LENGTH|RATE|BYTE|BLOCKS)$/.test(value ?? '') && key !== 'refcount_bits';

describe.each(specs.map((spec): [string, VerbSpec] => [spec.name, spec]))('%s', (name, spec) => {
  const line = lineOf(spec);
  const mistake = line.mistake ?? 1;

  it('has help, a manual and a place in the reference', async () => {
    for (const args of [['--help'], ['-h']]) {
      const { status, out, err } = await cli(name, ...args);
      expect([status, err]).toEqual([0, '']);
      expect(out).toContain(name === 'io' ? 'usage: cowdisk' : `usage: cowdisk ${name} [OPTIONS] ${spec.operands}\n`);
    }
    const { status, out } = await cli('help', name);
    expect(status).toBe(0);
    expect(out).toContain(`cowdisk ${name} - ${spec.summary}\n`);
    expect(await commandLineReference()).toContain(`\n## ${name}\n`);
    expect(spec.examples.length).toBeGreaterThan(0);
  });

  it('is shown by a page whose commands a test runs', () => {
    const commands = pages().flatMap((page) =>
      fencedBlocks(page)
        .filter(({ run: isRun, language }) => isRun && language === 'sh')
        .flatMap(({ text }) => shownCommands(text).map(({ command }) => command)),
    );
    expect(commands.filter((command) => new RegExp(`\\bcowdisk ${name}\\b`).test(command))).not.toEqual([]);
  });

  it('has JSON, or says why not', async () => {
    const hasJson = optionsFor(spec, cowdisk).some(({ key, support }) => key === 'json' && support === 'acts');
    expect([hasJson, spec.withoutJson !== undefined]).toEqual([hasJson, !hasJson]);
    if (spec.withoutJson !== undefined) {
      expect(await commandLineReference()).toContain(`No JSON: ${spec.withoutJson}.`);
      expect((await cli('help', name)).out).toContain('\nJSON\n');
    }
  });

  it('answers a line without operands', async () => {
    if (line.runsAlone === true) return;
    expectHint(await cli(name), mistake, name);
  });

  it('answers an option that there is not', async () => {
    for (const option of ['--no-such-option', '-%']) {
      const said = await cli(name, option, 'x');
      expectHint(said, mistake, name);
      expect(said.err).toContain(option);
    }
  });

  it('answers an option without its value', async () => {
    for (const option of acting(spec).filter(({ optionalValue }) => optionalValue !== true)) {
      expectHint(await cli(name, named(option)), mistake, name);
    }
  });

  it('answers operands of which there are too many', async () => {
    if (line.surplus === undefined) return;
    expectOneLine(await cli(name, ...line.surplus), mistake, name);
  });

  it('answers a file that is not there', async () => {
    const said = await cli(name, ...line.files(missing));
    expectOneLine(said, line.unopened ?? mistake, name);
    expect(said.err).toContain('missing.qcow2');
  });

  it('answers a value that is none of those there are', async () => {
    for (const option of acting(spec).filter(({ choices }) => choices !== undefined)) {
      const said = await cli(name, `${named(option)}=no-such-value`, ...line.files(disk));
      expectOneLine(said, mistake, name);
      expect(said.err).toContain("not 'no-such-value'");
      for (const choice of option.choices ?? []) expect(said.err).toContain(choice);
    }
  });

  it('answers a number that is none', async () => {
    for (const option of acting(spec).filter(isNumber)) {
      const files = line.files(name === 'commit' ? overlay : disk);
      const said = await cli(
        name,
        `${named(option)}=12z`,
        ...(option.key === 'size' && name === 'measure' ? [] : files),
      );
      expectOneLine(said, mistake, name);
      expect(said.err).toContain("'12z'");
    }
  });
});

describe('sizes that are operands', () => {
  it.each([
    ['create', ['-f', 'qcow2', path('x'), '12z']],
    ['resize', [disk, '12z']],
    ['resize', [disk, '+12z']],
    ['dd', ['bs=12z', `if=${disk}`, `of=${path('x')}`]],
    ['dd', ['count=12z', `if=${disk}`, `of=${path('x')}`]],
  ] as const)('are answered by %s when they are none', async (verb, args) => {
    const said = await cli(verb, ...args);
    expectOneLine(said, 1, verb);
    expect(said.err).toContain("12z'");
  });
});

describe('the program', () => {
  it('answers a verb that there is not', async () => {
    const { status, err } = await cli('chekc');
    expect([status, err]).toEqual([
      1,
      "cowdisk: there is no command 'chekc'; did you mean 'check'?\nTry 'cowdisk help' for more information\n",
    ]);
  });
});

function pages(): string[] {
  const below = readdirSync(join(ROOT, 'docs'), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.md'))
    .map((entry) => join(entry.parentPath, entry.name));
  return [join(ROOT, 'README.md'), ...below];
}
