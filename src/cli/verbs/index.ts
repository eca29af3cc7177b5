/** The verbs there are. Tables and commands are imported only when they are needed: start-up time counts. */
import { nearestName } from '../../base/options.ts';
import type { OptionSpec } from '../args.ts';
import type { Cli, Personality } from '../console.ts';
import type { VerbSpec } from './common.ts';

/** Runs a verb. @returns the exit status. */
export type Command = (cli: Cli, args: readonly string[], spec: VerbSpec) => Promise<number>;

/** A verb before anything of it is loaded. */
export interface VerbEntry {
  readonly summary: string;
  readonly only?: 'cowdisk';
  spec(): Promise<VerbSpec>;
  command(): Promise<Command>;
}

const VERBS: Readonly<Record<string, VerbEntry>> = {
  amend: {
    summary: 'change what an image was created with',
    spec: async () => (await import('./amend.ts')).amend,
    command: async () => (await import('../commands/amend.ts')).runAmend,
  },
  apply: {
    summary: 'make an image what a delta file leads to',
    only: 'cowdisk',
    spec: async () => (await import('./apply.ts')).apply,
    command: async () => (await import('../commands/apply.ts')).runApply,
  },
  audit: {
    summary: 'tell what an image could do to whoever opens it',
    only: 'cowdisk',
    spec: async () => (await import('./audit.ts')).audit,
    command: async () => (await import('../commands/audit.ts')).runAudit,
  },
  bench: {
    summary: 'send many requests to an image, and tell how long they took',
    spec: async () => (await import('./bench.ts')).bench,
    command: async () => (await import('../commands/bench.ts')).runBench,
  },
  bitmap: {
    summary: 'make, change and show records of what was written',
    spec: async () => (await import('./bitmap.ts')).bitmap,
    command: async () => (await import('../commands/bitmap.ts')).runBitmap,
  },
  check: {
    summary: 'look for errors in an image, and repair them',
    spec: async () => (await import('./check.ts')).check,
    command: async () => (await import('../commands/check.ts')).runCheck,
  },
  checksum: {
    summary: 'hash what a guest would read, the same for every format',
    only: 'cowdisk',
    spec: async () => (await import('./checksum.ts')).checksum,
    command: async () => (await import('../commands/checksum.ts')).runChecksum,
  },
  commit: {
    summary: 'write what an overlay holds into its backing file',
    spec: async () => (await import('./commit.ts')).commit,
    command: async () => (await import('../commands/commit.ts')).runCommit,
  },
  compare: {
    summary: 'tell whether two images have the same content',
    spec: async () => (await import('./compare.ts')).compare,
    command: async () => (await import('../commands/compare.ts')).runCompare,
  },
  convert: {
    summary: 'copy images into a new one, of the same or another format',
    spec: async () => (await import('./convert.ts')).convert,
    command: async () => (await import('../commands/convert.ts')).runConvert,
  },
  create: {
    summary: 'create a new, empty image, or an overlay over another one',
    spec: async () => (await import('./create.ts')).create,
    command: async () => (await import('../commands/create.ts')).runCreate,
  },
  dd: {
    summary: 'copy a part of an image into a new one, counted in blocks',
    spec: async () => (await import('./dd.ts')).dd,
    command: async () => (await import('../commands/dd.ts')).runDd,
  },
  delta: {
    summary: 'write what makes one disk of another to a file',
    only: 'cowdisk',
    spec: async () => (await import('./delta.ts')).delta,
    command: async () => (await import('../commands/delta.ts')).runDelta,
  },
  detach: {
    summary: 'make the data file of an image a disk of its own',
    only: 'cowdisk',
    spec: async () => (await import('./detach.ts')).detach,
    command: async () => (await import('../commands/detach.ts')).runDetach,
  },
  diff: {
    summary: 'list the ranges in which two images differ',
    only: 'cowdisk',
    spec: async () => (await import('./diff.ts')).diff,
    command: async () => (await import('../commands/diff.ts')).runDiff,
  },
  fuzz: {
    summary: 'run commands on damaged images, and keep what they fail on',
    only: 'cowdisk',
    spec: async () => (await import('./fuzz.ts')).fuzz,
    command: async () => (await import('../commands/fuzz.ts')).runFuzzVerb,
  },
  info: {
    summary: 'show what an image is: format, sizes, backing file, snapshots',
    spec: async () => (await import('./info.ts')).info,
    command: async () => (await import('../commands/info.ts')).runInfo,
  },
  io: {
    summary: 'read and write parts of an image, in a shell',
    only: 'cowdisk',
    spec: async () => (await import('./io.ts')).io,
    command: async () => (await import('../commands/io.ts')).runIo,
  },
  map: {
    summary: 'show where the data of an image lies, in which layer and file',
    spec: async () => (await import('./map.ts')).map,
    command: async () => (await import('../commands/map.ts')).runMap,
  },
  measure: {
    summary: 'tell how much space a new image would need',
    spec: async () => (await import('./measure.ts')).measure,
    command: async () => (await import('../commands/measure.ts')).runMeasure,
  },
  nbd: {
    summary: 'serve images to other programs and machines, over NBD',
    only: 'cowdisk',
    spec: async () => (await import('./nbd.ts')).nbd,
    command: async () => (await import('../commands/nbd.ts')).runNbd,
  },
  rebase: {
    summary: 'give an overlay another backing file, or none',
    spec: async () => (await import('./rebase.ts')).rebase,
    command: async () => (await import('../commands/rebase.ts')).runRebase,
  },
  recover: {
    summary: 'rebuild what is left of a damaged image into a new one',
    only: 'cowdisk',
    spec: async () => (await import('./recover.ts')).recover,
    command: async () => (await import('../commands/recover.ts')).runRecover,
  },
  resize: {
    summary: 'make the disk of an image larger or smaller',
    spec: async () => (await import('./resize.ts')).resize,
    command: async () => (await import('../commands/resize.ts')).runResize,
  },
  snapshot: {
    summary: 'list, make, apply and delete snapshots inside an image',
    spec: async () => (await import('./snapshot.ts')).snapshot,
    command: async () => (await import('../commands/snapshot.ts')).runSnapshot,
  },
};

export const VERB_NAMES: readonly string[] = Object.keys(VERBS);

/** The verb of that name, as far as the program has it under the name it was called by. */
export function findVerb(name: string, personality?: Personality): VerbEntry | undefined {
  const entry = Object.hasOwn(VERBS, name) ? VERBS[name] : undefined;
  return entry?.only === 'cowdisk' && personality?.qemu === true ? undefined : entry;
}

/** The verbs of the program. */
export function verbNames(personality: Personality): readonly string[] {
  return VERB_NAMES.filter((name) => findVerb(name, personality) !== undefined);
}

/** The verb that was perhaps meant. */
export function nearestVerb(name: string): string | undefined {
  return nearestName(name, VERB_NAMES);
}

export async function allVerbSpecs(): Promise<VerbSpec[]> {
  return Promise.all(Object.values(VERBS).map((entry) => entry.spec()));
}

/** The options that the program knows under the name it was called by. */
export function optionsFor(spec: VerbSpec, personality: Personality): readonly OptionSpec[] {
  const other = personality.qemu ? 'cowdisk' : 'qemu';
  return spec.options.filter((option) => option.only !== other);
}
