/** The verbs there are, and those to come. Tables and commands are imported only when they are needed: start-up time counts. */
import { nearestName } from '../../base/options.ts';
import type { OptionSpec } from '../args.ts';
import type { Cli, Personality } from '../console.ts';
import type { VerbSpec } from './common.ts';

/** Runs a verb. @returns the exit status. */
export type Command = (cli: Cli, args: readonly string[], spec: VerbSpec) => Promise<number>;

/** A verb before anything of it is loaded. */
export interface VerbEntry {
  readonly summary: string;
  spec(): Promise<VerbSpec>;
  command(): Promise<Command>;
}

const VERBS: Readonly<Record<string, VerbEntry>> = {
  check: {
    summary: 'look for errors in an image, and repair them',
    spec: async () => (await import('./check.ts')).check,
    command: async () => (await import('../commands/check.ts')).runCheck,
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
  info: {
    summary: 'show what an image is: format, sizes, backing file, snapshots',
    spec: async () => (await import('./info.ts')).info,
    command: async () => (await import('../commands/info.ts')).runInfo,
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
};

/** qemu-img's verbs that are not there yet. */
export const FUTURE_VERBS = ['amend', 'bench', 'bitmap', 'commit', 'dd', 'rebase', 'resize', 'snapshot'] as const;

export const VERB_NAMES: readonly string[] = Object.keys(VERBS);

export function findVerb(name: string): VerbEntry | undefined {
  return Object.hasOwn(VERBS, name) ? VERBS[name] : undefined;
}

export function isFutureVerb(name: string): boolean {
  return (FUTURE_VERBS as readonly string[]).includes(name);
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
