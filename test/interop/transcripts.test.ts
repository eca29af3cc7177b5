/** Every command line of the list says, returns and leaves behind the same as the real qemu-img does. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CASES, type Case, DAMAGED, FILES, FIXTURES } from './transcript-cases.ts';
import {
  compareDirectories,
  hasQemuImg,
  inParallel,
  Resident,
  requireBuild,
  splitCommand,
  started,
  Workshop,
} from './transcript-harness.ts';

/** Processes at a time. */
const WIDTH = 2;
/** Every so many cases the program is started as users start it; the others run in processes that stay. */
const STARTED_EACH = 12;
const MINUTES = 60_000;

/** While something is being made: only the lines that match this. */
const ONLY = new RegExp(process.env['COWDISK_TRANSCRIPTS'] ?? '');

const cases: readonly Case[] = CASES.map((entry) => (typeof entry === 'string' ? { line: entry } : entry)).filter(
  ({ line }) => ONLY.test(line),
);

interface Result {
  readonly theirs: string;
  readonly ours: string;
  /** Differences between the files left behind. */
  readonly files: readonly string[];
}

/** The fixtures that a line names, and those that these need. */
function fixturesOf(line: string): string[] {
  const names = new Set<string>();
  const add = (name: string): void => {
    if (names.has(name)) return;
    const fixture = FIXTURES[name];
    if (fixture === undefined && DAMAGED[name] === undefined && FILES[name] === undefined) return;
    names.add(name);
    for (const needed of fixture?.needs ?? []) add(needed);
  };
  const known = [...Object.keys(FIXTURES), ...Object.keys(DAMAGED), ...Object.keys(FILES)];
  for (const word of splitCommand(line.replaceAll(';', ' '))) {
    for (const name of known) if (mentions(word, name)) add(name);
  }
  return [...names];
}

/** Whether `name` stands in the word as a name of its own. */
function mentions(word: string, name: string): boolean {
  const at = word.indexOf(name);
  if (at < 0) return false;
  const before = word[at - 1];
  const after = word[at + name.length];
  return (before === undefined || !/[\w.-]/.test(before)) && (after === undefined || !/[\w.-]/.test(after));
}

function prepareFixtures(workshop: Workshop): void {
  for (const [name, content] of Object.entries(FILES)) workshop.write(name, Buffer.from(content, 'latin1'));
  for (const fixture of Object.values(FIXTURES)) workshop.prepare(fixture.make);
  for (const [name, { from, at }] of Object.entries(DAMAGED)) {
    const bytes = Uint8Array.from(workshop.read(from));
    for (const [offset, patch] of at) bytes.set(patch, offset);
    workshop.write(name, bytes);
  }
}

describe.skipIf(!hasQemuImg() && process.env['CI'] === undefined)(
  'called qemu-img, the program answers as qemu-img does',
  () => {
    const results = new Map<Case, Result>();
    let workshop: Workshop;
    let residents: Resident[] = [];

    beforeAll(async () => {
      if (process.env['COWDISK_PROGRAM'] === undefined) requireBuild();
      workshop = new Workshop();
      prepareFixtures(workshop);
      residents = Array.from({ length: WIDTH }, () => new Resident(workshop.ours));
      await inParallel(cases, residents, async (entry, resident) => {
        const commands = entry.line.split('; ');
        const fixtures = fixturesOf(entry.line);
        const theirs = await workshop.run(commands, started('qemu-img'), fixtures);
        const program = cases.indexOf(entry) % STARTED_EACH === 0 ? started(workshop.ours) : resident.run;
        const ours = await workshop.run(commands, program, fixtures);
        const files = await compareDirectories(theirs.directory, ours.directory);
        results.set(entry, { theirs: theirs.transcript, ours: ours.transcript, files });
      });
    }, 5 * MINUTES);

    afterAll(() => {
      for (const resident of residents) resident.stop();
      workshop?.dispose();
    });

    it.each(cases)('qemu-img $line', (entry) => {
      const { ours, theirs, files } = results.get(entry) as Result;
      if (entry.differs !== undefined) {
        expect(ours, `said to differ: ${entry.differs}`).not.toBe(theirs);
        return;
      }
      expect(ours).toBe(theirs);
      if (entry.leaves === undefined) expect(files).toEqual([]);
      else expect(files, `said to differ: ${entry.leaves}`).not.toEqual([]);
    });
  },
);
