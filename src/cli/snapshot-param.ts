/** The snapshot that `-l` names: reading the parameter, and telling that it could not be opened. */
import { isBlockError } from '../base/errors.ts';
import type { SnapshotSelector } from '../core/format.ts';
import type { Personality } from './console.ts';
import { Failure } from './failure.ts';
import { parseOptionList } from './option-list.ts';
import { describeError } from './render/describe.ts';

/** A text is an id or else a name; `snapshot.id=…,snapshot.name=…` says which.
 *  @throws {@link Failure} in QEMU's words. */
export function parseSnapshotParam(text: string): SnapshotSelector {
  if (!text.startsWith('snapshot.')) return text;
  const values = new Map<string, string>();
  for (const { name, value } of parseOptionList(text)) {
    if (name !== 'snapshot.id' && name !== 'snapshot.name') {
      throw new Failure([`Invalid parameter '${name}'`, `Failed in parsing snapshot param '${text}'`]);
    }
    values.set(name, value);
  }
  return { id: values.get('snapshot.id'), name: values.get('snapshot.name') };
}

const REASONS: ReadonlySet<string | undefined> = new Set([
  'image.snapshots',
  'qcow2.snapshot-missing',
  'qcow2.snapshot-l1-size',
  'qcow2.snapshot-l1-offset',
  'qcow2.snapshot-disk-size',
]);

/** The failure of opening an image, where it was the snapshot that could not be found or read.
 *  @throws {@link Failure} in the words for that; else `failure` as it is. */
export function throwSnapshotFailure(failure: unknown, personality: Personality): never {
  const cause = failure instanceof Failure ? failure.cause : undefined;
  if (!isBlockError(cause) || !REASONS.has(cause.reason)) throw failure;
  throw new Failure(`Failed to load snapshot: ${describeError(cause, personality).text}`, { cause });
}
