/** Every command line of the list says, returns and leaves behind the same as the real qemu-io does. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { IO_FIXTURES, type IoCase, IO_CASES as SHELL_CASES, IO_FILES as SHELL_FILES } from './io-cases.ts';
import { BLKDEBUG_CASES, BLKDEBUG_FILES } from './io-cases-blkdebug.ts';
import {
  compareDirectories,
  hasQemuImg,
  inParallel,
  type Program,
  Resident,
  requireBuild,
  splitCommand,
  started,
  Workshop,
} from './transcript-harness.ts';

const IO_CASES = [...SHELL_CASES, ...BLKDEBUG_CASES];
const IO_FILES = { ...SHELL_FILES, ...BLKDEBUG_FILES };

const WIDTH = 2;
/** Every so many cases the program is started as users start it. */
const STARTED_EACH = 40;
const MINUTES = 60_000;

interface Result {
  readonly theirs: string;
  readonly ours: string;
  readonly files: readonly string[];
}

/** The fixtures that a line names, and those that these need. */
function fixturesOf({ line, input = '' }: IoCase): string[] {
  const names = new Set<string>();
  const add = (name: string): void => {
    names.add(name);
    for (const needed of IO_FIXTURES[name]?.needs ?? []) add(needed);
  };
  for (const name of [...Object.keys(IO_FIXTURES), ...Object.keys(IO_FILES)]) {
    if (`${line} ${input}`.split(/[^\w.-]/).includes(name)) add(name);
  }
  return [...names];
}

/** Times and rates are everybody's own. */
function normalise(text: string, unordered: boolean): string {
  const lines = text
    .replaceAll(/^(\S+ \S+, 1 ops; ).*$/gm, '$1<time>')
    .replaceAll(/^(\d+,1,)\d+:\d\d:\d\d\.\d\d,[\d.]+,[\d.]+$/gm, '$1<time>');
  return unordered ? lines.split('\n').sort().join('\n') : lines;
}

async function answer(
  workshop: Workshop,
  entry: IoCase,
  program: Program,
): Promise<{ text: string; directory: string }> {
  const directory = workshop.directory(fixturesOf(entry));
  const { stdout, stderr, status } = await program(splitCommand(entry.line), directory, entry.input ?? '');
  // Ours prints its help where qemu-io prints its own; what is wrong is on the other stream.
  const out = stdout.replace(/^(Usage: qemu-io|qemu-io version)[\s\S]*$/m, '<help>\n');
  const text = `${normalise(out, entry.unordered === true)}\n--\n${stderr}\n[${status}]`;
  return { text: text.replaceAll(directory, '<dir>'), directory };
}

describe.skipIf(!hasQemuImg() && process.env['CI'] === undefined)(
  'called qemu-io, the program answers as qemu-io does',
  () => {
    const results = new Map<IoCase, Result>();
    let workshop: Workshop;
    let residents: Resident[] = [];

    beforeAll(async () => {
      if (process.env['COWDISK_PROGRAM'] === undefined) requireBuild();
      workshop = new Workshop();
      for (const [name, content] of Object.entries(IO_FILES)) workshop.write(name, Buffer.from(content, 'latin1'));
      for (const fixture of Object.values(IO_FIXTURES)) workshop.prepare(fixture.make);
      residents = Array.from({ length: WIDTH }, () => new Resident(workshop.oursIo));
      await inParallel(IO_CASES, residents, async (entry, resident) => {
        const real = await answer(workshop, entry, started('qemu-io'));
        const isStarted = IO_CASES.indexOf(entry) % STARTED_EACH === 0;
        const own = await answer(workshop, entry, isStarted ? started(workshop.oursIo) : resident.run);
        const files = await compareDirectories(real.directory, own.directory);
        results.set(entry, { theirs: real.text, ours: own.text, files });
      });
    }, 5 * MINUTES);

    afterAll(() => {
      for (const resident of residents) resident.stop();
      workshop?.dispose();
    });

    it.each(IO_CASES)('qemu-io $line $input', (entry) => {
      const { ours, theirs, files } = results.get(entry) as Result;
      if (entry.differs !== undefined) {
        expect(ours, `said to differ: ${entry.differs}`).not.toBe(theirs);
        return;
      }
      expect(ours).toBe(theirs);
      expect(files).toEqual([]);
    });
  },
);
