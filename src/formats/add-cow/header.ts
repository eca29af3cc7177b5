/** The header of an add-cow file, whichever version: reading with every bound checked. Spec: add-cow, "v9" and "V20".
 *  Invariant: a header that was read has passed every check; nothing behind it needs to be checked again. */
import type { ByteStore } from '../../core/store.ts';
import { decodeV9, hasV9Magic } from './header-v9.ts';
import { checkV20, decodeV20, hasV20Magic } from './header-v20.ts';
import { fault, V20_MIN_HEADER } from './layout.ts';
import type { AddCowHeader } from './record.ts';

/** Reads and checks the header.
 *  @throws {@link BlockError} WRONG_FORMAT `add-cow.magic`; UNSUPPORTED `add-cow.version`, `add-cow.features`; CORRUPT, one reason for each rule
 *  of the format, with details `field`, `offset`, `value`, `bound`. */
export async function readHeader(file: ByteStore, name: string): Promise<AddCowHeader> {
  const head = new Uint8Array(V20_MIN_HEADER);
  await file.read(0, head);
  if (hasV9Magic(head)) return decodeV9(head, file.size, name);
  if (!hasV20Magic(head)) {
    throw fault(name, 'magic', 'not an add-cow image: neither magic is there', { offset: 0 }, 'WRONG_FORMAT');
  }
  const { fields, needed } = checkV20(head, file.size, name);
  if (needed <= head.length) return decodeV20(head, fields, name);
  const whole = new Uint8Array(needed);
  await file.read(0, whole);
  return decodeV20(whole, fields, name);
}
