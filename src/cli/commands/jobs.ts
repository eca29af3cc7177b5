/** What the verbs that change images share: cache modes, interruptions, and how failures of their jobs are told. */
import { isBlockError } from '../../base/errors.ts';
import type { CacheMode } from '../../tools/convert.ts';
import { type Cli, Interruption } from '../console.ts';
import { Failure } from '../failure.ts';
import { cacheMode, openFailure } from '../open.ts';
import { describeError } from '../render/describe.ts';
import type { Scanned } from './common.ts';

/** `-t`. @throws {@link Failure} */
export function targetCache(given: Scanned): CacheMode | undefined {
  const name = given.value('cache');
  if (name === undefined) return undefined;
  const mode = cacheMode(name);
  if (mode === undefined) throw new Failure(`Invalid cache option: ${name}`);
  return mode;
}

/** The failure of a job.
 *  @param job its errors have this name in front of their reasons.
 *  @param left what an interruption leaves. */
export function jobFailure(cli: Cli, job: string, label: string, left: string, error: unknown): unknown {
  if (!isBlockError(error) || error.code === 'INTERNAL') return error;
  if (error.code === 'ABORTED') {
    const { reason } = cli.signal;
    if (!(reason instanceof Interruption)) return error;
    return new Failure(`interrupted: ${left}`, { status: reason.status, cause: error });
  }
  if (error.reason?.startsWith(`${job}.`) !== true) {
    // Opened for writing, a directory is refused by the system, not by the format layer.
    if (cli.personality.qemu && error.details['kind'] === 'directory') {
      const name = String(error.details['path']);
      return new Failure(`Could not open '${label}': Could not open '${name}': Is a directory`, { cause: error });
    }
    return openFailure(cli, label, error);
  }
  const { text, hint } = describeError(error, cli.personality);
  return new Failure(text, { cause: error, ...(hint === undefined ? {} : { trailer: hint }) });
}
