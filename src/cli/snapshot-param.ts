/** The snapshot that `-l` names: reading the parameter, and finding it among those of an image. Reading a snapshot's content comes later. */
import type { Image } from '../image/image.ts';
import { Failure } from './failure.ts';
import { parseOptionList } from './option-list.ts';

export interface SnapshotParam {
  readonly id: string | undefined;
  readonly name: string | undefined;
  /** `text` may be either. */
  readonly text: string | undefined;
}

/** @throws {@link Failure} in QEMU's words. */
export function parseSnapshotParam(text: string): SnapshotParam {
  if (!text.startsWith('snapshot.')) return { id: undefined, name: undefined, text };
  const values = new Map<string, string>();
  for (const { name, value } of parseOptionList(text)) {
    if (name !== 'snapshot.id' && name !== 'snapshot.name') {
      throw new Failure([`Invalid parameter '${name}'`, `Failed in parsing snapshot param '${text}'`]);
    }
    values.set(name, value);
  }
  return { id: values.get('snapshot.id'), name: values.get('snapshot.name'), text: undefined };
}

/** Refuses: first what qemu-img would refuse too, then because the content of snapshots cannot be read yet.
 *  @throws {@link Failure} always. */
export async function refuseSnapshot(image: Image, param: SnapshotParam, refused: Failure): Promise<never> {
  const { snapshots } = await image.info();
  if (image.format === 'raw') {
    throw new Failure(
      "Failed to load snapshot: Block format 'raw' used by device '' does not support temporarily loading internal snapshots",
    );
  }
  const found = (snapshots ?? []).some(({ id, name }) =>
    param.text !== undefined
      ? id === param.text || name === param.text
      : (param.id ?? id) === id && (param.name ?? name) === name,
  );
  throw found ? refused : new Failure("Failed to load snapshot: Can't find snapshot");
}
