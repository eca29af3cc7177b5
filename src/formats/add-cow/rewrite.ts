/** Changes of a header that is in use. Spec: add-cow, both tables.
 *  Invariant: each change takes effect with one write of one sector, so that a cut leaves the old header or the new one; what else it needs is
 *  durable before, in places that the old header does not speak of. */
import { alignUp } from '../../bytes/align.ts';
import type { BackingRecord } from '../../core/format.ts';
import type { ByteStore } from '../../core/store.ts';
import { encodeV9, V9_BACKING_LIMIT, v9BackingEnd } from './header-v9.ts';
import { COMPATIBLE_AT, encodeV20 } from './header-v20.ts';
import { fault, headerSize, SECTOR, V20_FIELDS } from './layout.ts';
import { encodeName, requireFormatName } from './names.ts';
import { type AddCowHeader, COMPATIBLE, type RecordedName, recordedName } from './record.ts';

/** Records another backing file, durably; v9 has no place for its format.
 *  @returns the header as it is now.
 *  @throws {@link BlockError} OPTION as `encodeName`; NO_SPACE `add-cow.backing-name-space`: there is no room for the new name beside the old. */
export async function rewriteBacking(
  file: ByteStore,
  header: AddCowHeader,
  backing: BackingRecord | undefined,
  name: string,
): Promise<AddCowHeader> {
  const bytes = backing === undefined ? new Uint8Array(0) : encodeName(backing.name, 'backing', header, name);
  if (header.version === 'v9') return await rewriteV9(file, header, bytes, name);
  if (backing?.format !== undefined) requireFormatName(backing.format, 'backing', name);
  return await rewriteV20(file, { ...header, backingFormat: backing?.format }, header, bytes, name);
}

/** Says that everything is allocated, durably. V20 only. */
export async function rewriteAllAllocated(file: ByteStore, header: AddCowHeader): Promise<AddCowHeader> {
  const compatible = header.compatible | COMPATIBLE.allAllocated;
  const word = new Uint8Array(8);
  new DataView(word.buffer).setBigUint64(0, compatible, true);
  await file.write(COMPATIBLE_AT, word);
  await file.flush();
  return { ...header, compatible };
}

/** A name that ends in the first sector is ended there by its NUL: what is behind it is not looked at. */
async function rewriteV9(
  file: ByteStore,
  header: AddCowHeader,
  bytes: Uint8Array,
  name: string,
): Promise<AddCowHeader> {
  const next = { ...header, backing: bytes.length === 0 ? undefined : recordedName(bytes, 12) };
  const whole = encodeV9(next);
  const rest = whole.subarray(SECTOR, V9_BACKING_LIMIT);
  const wasLong = v9BackingEnd(header.backing?.bytes.length ?? 0) > SECTOR;
  const isLong = v9BackingEnd(bytes.length) > SECTOR;
  if (wasLong && isLong) {
    throw noSpace(name, 'two names that both pass the first sector cannot be exchanged safely', bytes.length);
  }
  if (isLong) await writeDurably(file, SECTOR, rest);
  await writeDurably(file, 0, whole.subarray(0, SECTOR));
  if (wasLong) await writeDurably(file, SECTOR, rest);
  return next;
}

async function rewriteV20(
  file: ByteStore,
  wanted: AddCowHeader,
  old: AddCowHeader,
  bytes: Uint8Array,
  name: string,
): Promise<AddCowHeader> {
  const { image, backing, moved } = place(wanted, old, bytes, name);
  const next: AddCowHeader = { ...wanted, image, backing };
  const encoded = encodeV20(next);
  const whole = new Uint8Array(Math.max(encoded.length, alignUp(usedEnd(old), SECTOR)));
  whole.set(encoded);
  if (moved !== undefined) await writeDurably(file, moved.at, moved.bytes);
  await writeDurably(file, 0, whole.subarray(0, SECTOR));
  // The names in force are written once more as they are; what is left of the old one goes.
  if (usedEnd(old) > SECTOR) await writeDurably(file, SECTOR, whole.subarray(SECTOR));
  return next;
}

interface Places {
  readonly image: RecordedName;
  readonly backing: RecordedName | undefined;
  /** What has to be there before the fields point to it. */
  readonly moved: RecordedName | undefined;
}

/** Both names in the first sector where they fit, for they change with it; else the new one beside everything that is in use. */
function place(wanted: AddCowHeader, old: AddCowHeader, bytes: Uint8Array, name: string): Places {
  const { image } = wanted;
  if (V20_FIELDS + bytes.length + image.bytes.length <= SECTOR) {
    return {
      backing: bytes.length === 0 ? undefined : recordedName(bytes, V20_FIELDS),
      image: recordedName(image.bytes, V20_FIELDS + bytes.length),
      moved: undefined,
    };
  }
  if (bytes.length === 0) return { image, backing: undefined, moved: undefined };
  const taken = [image, ...(old.backing === undefined ? [] : [old.backing])];
  const bound = headerSize(wanted);
  const ends = taken.map((range) => Math.max(SECTOR, range.at + range.bytes.length));
  const at = [SECTOR, ...ends].find(
    (start) =>
      start + bytes.length <= bound &&
      start <= bound - 2 &&
      taken.every((range) => start + bytes.length <= range.at || range.at + range.bytes.length <= start),
  );
  if (at === undefined)
    throw noSpace(name, `the header of ${bound} bytes has no room for it beside the old one`, bytes.length);
  const backing = recordedName(bytes, at);
  return { image, backing, moved: backing };
}

function usedEnd({ image, backing }: AddCowHeader): number {
  return Math.max(image.at + image.bytes.length, backing === undefined ? 0 : backing.at + backing.bytes.length);
}

function noSpace(name: string, why: string, length: number): Error {
  return fault(
    name,
    'backing-name-space',
    `the new backing file name has ${length} bytes: ${why}`,
    { value: length },
    'NO_SPACE',
  );
}

async function writeDurably(file: ByteStore, offset: number, bytes: Uint8Array): Promise<void> {
  await file.write(offset, bytes);
  await file.flush();
}
