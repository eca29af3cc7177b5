/** A run of the fuzzer: seeds, images, commands, findings. Owns the order of the work, the lanes that do it, and which findings are one.
 *  Invariants: image and damage depend on seed, format and density alone, whatever the number of lanes; every directory that a run made is gone
 *  when it ends; an interruption ends the commands that run, and is no finding. */
import { join } from 'node:path';
import { pick, seededRandom, seedFor } from '../../base/random.ts';
import type { FormatDriver } from '../../core/format.ts';
import type { FuzzFormat } from '../../core/fuzz.ts';
import { type Damage, damaged, drawDamages } from '../../tools/fuzz/damage.ts';
import { shrink } from '../../tools/fuzz/shrink.ts';
import { IMAGE_NAME, makeSpecimen, type Specimen } from '../../tools/fuzz/specimen.ts';
import { Failure } from '../failure.ts';
import type { Execute, Limits, Outcome } from './execute.ts';
import { judge, type Rules, type Verdict } from './judge.ts';
import { type CommandTemplate, fill } from './template.ts';
import { clear, fillingOf, layOut, type Subject } from './workshop.ts';

/** Tries of shrinking one finding; fewer where each of them takes as long as it may. */
const TRIES = 200;
const SLOW_TRIES = 24;

export interface Workbench {
  readonly execute: Execute;
  readonly limits: Limits;
  readonly rules: Rules;
  /** A directory that is there, for directories of its own. */
  readonly scratch: string;
  /** The words that start this program. */
  readonly cowdisk: readonly string[];
  readonly signal: AbortSignal;
}

export interface FuzzPlan extends Workbench {
  readonly formats: readonly FuzzFormat[];
  /** All that images may consist of. */
  readonly drivers: readonly FormatDriver[];
  readonly firstSeed: number;
  /** Seeds; each makes an image of every format. */
  readonly count: number;
  /** Percent of the fields. */
  readonly density: number;
  readonly commands: readonly CommandTemplate[];
  /** So many of the commands for each image, drawn by its seed. All, when not given. */
  readonly picked: number | undefined;
  readonly lanes: number;
  readonly shrink: boolean;
  /** No new image is begun after so many different findings. */
  readonly enough: number;
  /** No new image is begun once it says so. */
  timeIsUp(): boolean;
  onFinding(finding: Finding): void;
  onProgress(done: number, total: number): void;
}

/** One thing that was found, the first time. */
export interface Finding {
  readonly seed: number;
  readonly density: number;
  readonly command: CommandTemplate;
  readonly verdict: Verdict;
  readonly features: readonly string[];
  /** What is left of the damage after shrinking, and is done to the image of {@link subject}. */
  readonly damages: readonly Damage[];
  /** How many there were before. */
  readonly drawn: number;
  readonly subject: Subject;
  readonly limits: Limits;
}

export interface FuzzResult {
  readonly images: number;
  readonly runs: number;
  /** How often each was met, by its signature. */
  readonly findings: ReadonlyMap<string, number>;
  readonly interrupted: boolean;
}

export async function runFuzz(plan: FuzzPlan): Promise<FuzzResult> {
  const session = new Session(plan);
  await session.run();
  return session;
}

/** Runs one command on one image, in a directory of its own that is gone afterwards.
 *  @throws {@link Failure} status 2 when the program cannot be run. */
export async function runOnce(
  bench: Workbench,
  directory: string,
  command: CommandTemplate,
  subject: Subject,
): Promise<Verdict | undefined> {
  layOut(directory, subject.files);
  let outcome: Outcome;
  try {
    const argv = fill(command, fillingOf(directory, subject, bench.cowdisk));
    outcome = await bench.execute(argv, directory, bench.limits, bench.signal);
  } finally {
    clear(directory);
  }
  if (outcome.notRun !== undefined) {
    throw new Failure(`'${command.text}': cannot be run: ${outcome.notRun}`, { status: 2 });
  }
  if (bench.signal.aborted) return undefined;
  return judge(outcome, command.text, directory, bench.rules);
}

class Session implements FuzzResult {
  images = 0;
  runs = 0;
  readonly findings = new Map<string, number>();
  readonly #plan: FuzzPlan;
  #next = 0;
  #failure: unknown;

  constructor(plan: FuzzPlan) {
    this.#plan = plan;
  }

  get interrupted(): boolean {
    return this.#plan.signal.aborted;
  }

  async run(): Promise<void> {
    const lanes = Array.from({ length: this.#plan.lanes }, (_, lane) =>
      this.#lane(join(this.#plan.scratch, `${lane}`)),
    );
    await Promise.all(lanes);
    if (this.#failure !== undefined) throw this.#failure;
  }

  async #lane(directory: string): Promise<void> {
    const { formats, count, firstSeed, onProgress } = this.#plan;
    const total = count * formats.length;
    while (this.#next < total && !this.#isOver()) {
      const index = this.#next++;
      const format = formats[index % formats.length] as FuzzFormat;
      try {
        await this.#image(format, firstSeed + Math.floor(index / formats.length), directory);
      } catch (error) {
        this.#failure ??= error;
      }
      onProgress(++this.images, total);
    }
  }

  #isOver(): boolean {
    const { signal, enough, timeIsUp } = this.#plan;
    return signal.aborted || this.#failure !== undefined || this.findings.size >= enough || timeIsUp();
  }

  async #image(format: FuzzFormat, seed: number, directory: string): Promise<void> {
    const { drivers, density, signal } = this.#plan;
    const specimen = await makeSpecimen(format, seed, drivers);
    const sound = specimen.files.get(IMAGE_NAME) as Uint8Array;
    const damages = drawDamages(specimen.format, seed, sound, specimen.anatomy, { density });
    for (const command of this.#commandsFor(specimen)) {
      if (signal.aborted) return;
      this.runs++;
      const verdict = await runOnce(this.#plan, directory, command, subjectOf(specimen, damages));
      if (verdict !== undefined) await this.#found(specimen, damages, command, verdict, directory);
    }
  }

  #commandsFor({ format, seed }: Specimen): readonly CommandTemplate[] {
    const { commands, picked } = this.#plan;
    if (picked === undefined || picked >= commands.length) return commands;
    const random = seededRandom(seedFor(`${format} commands`, seed));
    const chosen = new Set<CommandTemplate>();
    while (chosen.size < picked) chosen.add(pick(random, commands));
    return commands.filter((command) => chosen.has(command));
  }

  async #found(
    specimen: Specimen,
    drawn: readonly Damage[],
    command: CommandTemplate,
    verdict: Verdict,
    directory: string,
  ): Promise<void> {
    const { signature, kind } = verdict;
    const times = this.findings.get(signature) ?? 0;
    this.findings.set(signature, times + 1);
    if (times > 0) return;
    let damages = drawn;
    if (this.#plan.shrink) {
      const again = async (some: readonly Damage[]): Promise<boolean> => {
        if (this.interrupted) return false;
        this.runs++;
        const found = await runOnce(this.#plan, directory, command, subjectOf(specimen, some));
        return found?.signature === signature;
      };
      damages = (await shrink(drawn, again, kind === 'hang' ? SLOW_TRIES : TRIES)).items;
    }
    const { density, limits, onFinding } = this.#plan;
    const subject = subjectOf(specimen, damages);
    const { seed, features } = specimen;
    onFinding({ seed, density, command, verdict, features, damages, drawn: drawn.length, subject, limits });
  }
}

/** The image with these damages. */
export function subjectOf(specimen: Specimen, damages: readonly Damage[]): Subject {
  const { format, size, place, open } = specimen;
  const files = new Map(specimen.files);
  files.set(IMAGE_NAME, damaged(files.get(IMAGE_NAME) as Uint8Array, damages));
  return { format, size, place, open, files };
}
