/** What a header can record of names and formats, before anything is written. Spec: add-cow, bounds of the names.
 *  Invariant: what passes here is read back as it was given. */

import { isPrintable } from './header-v20.ts';
import { type AddCowShape, fault, headerSize, V9_NAME_BYTES, V20_FIELDS, V20_FORMAT_BYTES } from './layout.ts';
import { encodeText } from './record.ts';

type What = 'backing' | 'image';

/** The bytes of a name. Names are recorded as given.
 *  @throws {@link BlockError} OPTION `add-cow.backing-name`, `add-cow.image-name` (empty, or a zero byte), `add-cow.backing-name-long`,
 *  `add-cow.image-name-long`. */
export function encodeName(text: string, what: What, shape: AddCowShape, name: string): Uint8Array {
  if (text === '' || text.includes('\0')) {
    throw fault(
      name,
      `${what}-name`,
      `the ${what} file name is empty or has a zero byte in it`,
      { value: text },
      'OPTION',
    );
  }
  const bytes = encodeText(text);
  const bound = shape.version === 'v9' ? V9_NAME_BYTES - 1 : headerSize(shape) - V20_FIELDS - 1;
  if (bytes.length > bound) {
    throw fault(
      name,
      `${what}-name-long`,
      `the ${what} file name has ${bytes.length} bytes; at most ${bound} fit`,
      { value: bytes.length, bound },
      'OPTION',
    );
  }
  return bytes;
}

/** @throws {@link BlockError} OPTION `add-cow.backing-format`, `add-cow.image-format`. */
export function requireFormatName(format: string, what: What, name: string): void {
  const bound = V20_FORMAT_BYTES - 1;
  const fits = format.length > 0 && format.length <= bound && encodeText(format).every(isPrintable);
  if (fits) return;
  throw fault(
    name,
    `${what}-format`,
    `the ${what} format '${format}' is not a name of 1 to ${bound} ASCII characters`,
    { value: format, bound },
    'OPTION',
  );
}
