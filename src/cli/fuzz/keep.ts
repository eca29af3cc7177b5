/** Findings on disk: a directory for each, with the image, the files it names, and what was done. All that is needed to do it again, with another
 *  version of this program as well.
 *  Invariants: finding.json is written last, so a directory that has one is whole; nothing that exists is overwritten; names in finding.json are
 *  plain names of that directory. */
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { FuzzFormat } from '../../core/fuzz.ts';
import { type Damage, damaged, describeDamage, drawDamages } from '../../tools/fuzz/damage.ts';
import { IMAGE_NAME, type Specimen } from '../../tools/fuzz/specimen.ts';
import { Failure } from '../failure.ts';
import { packageVersion } from '../help.ts';
import type { Limits } from './execute.ts';
import type { Finding } from './session.ts';
import { type CommandTemplate, parseCommandList } from './template.ts';
import { layOut, type Subject } from './workshop.ts';

const FACTS = 'finding.json';

/** What is told of a finding, as JSON. */
export function factsOf({ seed, density, command, verdict, features, damages, drawn, subject, limits }: Finding) {
  return {
    format: subject.format,
    seed,
    density,
    ...verdict,
    command: command.words,
    features,
    damages,
    drawn,
    limits,
    version: packageVersion(),
  };
}

/** Keeps a finding. @returns the directory */
export function keepFinding(into: string, finding: Finding): string {
  const { subject, seed, verdict } = finding;
  const base = join(into, `${subject.format}-${seed}-${verdict.kind}`);
  let directory = base;
  for (let number = 2; existsSync(directory); number++) directory = `${base}-${number}`;
  mkdirSync(into, { recursive: true });
  layOut(directory, subject.files);
  const { open, place, size, files } = subject;
  writeFacts(directory, { ...factsOf(finding), open, place, size, files: [...files.keys()] });
  return directory;
}

function writeFacts(directory: string, facts: object): void {
  writeFileSync(join(directory, FACTS), `${JSON.stringify(facts, undefined, 2)}\n`);
}

/** Writes the image of a seed, sound and damaged, and what it names. @returns the directory */
export function keepSpecimen(into: string, specimen: Specimen, damages: readonly Damage[]): string {
  const { format, seed, features, open, place, size, files } = specimen;
  const directory = join(into, `${format}-${seed}`);
  if (existsSync(directory)) throw new Failure(`'${directory}' exists already`);
  const sound = files.get(IMAGE_NAME) as Uint8Array;
  const all = new Map(files).set(IMAGE_NAME, damaged(sound, damages));
  layOut(directory, new Map(all).set(`${IMAGE_NAME}.sound`, sound));
  const facts = { format, seed, features, damages, open, place, size, files: [...all.keys()] };
  writeFacts(directory, { ...facts, version: packageVersion() });
  return directory;
}

/** {@link keepSpecimen} for the seed's own damage. */
export function drawFor(specimen: Specimen, { driver }: FuzzFormat, density: number): Damage[] {
  const sound = specimen.files.get(IMAGE_NAME) as Uint8Array;
  return drawDamages(driver.name, specimen.seed, sound, specimen.anatomy, { density });
}

/** What was kept. */
export interface Kept {
  readonly directory: string;
  readonly subject: Subject;
  /** `undefined` where nothing was found with it: an image that was only made. */
  readonly command: CommandTemplate | undefined;
  readonly limits: Limits | undefined;
  readonly damages: readonly string[];
}

/** Reads what was kept. @param path the directory, or the finding.json in it @throws {@link Failure} */
export function readKept(path: string): Kept {
  try {
    const directory = statSync(path).isDirectory() ? path : dirname(path);
    const facts = requireFacts(JSON.parse(readFileSync(join(directory, FACTS), 'utf8')));
    const files = facts.files.map(
      (name) => [basename(name), new Uint8Array(readFileSync(join(directory, basename(name))))] as const,
    );
    const { format, size, place, open, limits } = facts;
    const command =
      facts.command === undefined ? undefined : parseCommandList(JSON.stringify([facts.command]), path)[0];
    return {
      directory,
      subject: { format, size, place, open, files: new Map(files) },
      command,
      limits,
      damages: facts.damages.map(describeDamage),
    };
  } catch (error) {
    if (error instanceof Failure) throw error;
    throw new Failure(`--replay: ${(error as Error).message}`, { cause: error });
  }
}

interface Facts extends Omit<Subject, 'files'> {
  readonly files: readonly string[];
  readonly command?: readonly string[];
  readonly limits?: Limits;
  readonly damages: readonly Damage[];
}

/** @throws {@link Error} for what is none. */
function requireFacts(value: unknown): Facts {
  const facts = value as Partial<Facts> | null;
  const whole =
    typeof facts === 'object' &&
    facts !== null &&
    typeof facts.format === 'string' &&
    typeof facts.size === 'number' &&
    typeof facts.place === 'object' &&
    typeof facts.open === 'object' &&
    Array.isArray(facts.damages) &&
    Array.isArray(facts.files) &&
    facts.files.every((name) => typeof name === 'string');
  if (!whole) throw new Error(`${FACTS} does not describe an image`);
  return facts as Facts;
}
