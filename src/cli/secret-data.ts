/** The bytes of a `--object secret`: where they come from, base64, and the cipher around secrets that are encrypted with another one
 *  (AES-256-CBC, padded as in PKCS #7), as QEMU documents them.
 *  Invariant: the bytes of a secret never appear in a message; buffers that held them in another form are wiped. */
import { readFileSync } from 'node:fs';
import { ERRNO_TEXT, errnoOf } from '../base/errors.ts';
import { Failure } from './failure.ts';

const KEY_BYTES = 32;
const BLOCK_BYTES = 16;

export interface SecretProperties {
  readonly data: string | undefined;
  readonly file: string | undefined;
  readonly format: 'raw' | 'base64';
  /** Id of the secret that is the key. */
  readonly keyid: string | undefined;
  /** Base64. */
  readonly iv: string | undefined;
}

/** @param keyOf the bytes of the secret with that id, which stay its owner's
 *  @throws {@link Failure} in QEMU's words. */
export function secretData(properties: SecretProperties, keyOf: (id: string) => Uint8Array): Uint8Array {
  const { data, file, format, keyid, iv } = properties;
  const given = givenBytes(data, file);
  if (keyid === undefined) return format === 'base64' ? fromBase64(given) : given;
  const key = keyOf(keyid);
  if (key.length !== KEY_BYTES) throw new Failure(`Key should be ${KEY_BYTES} bytes in length`);
  if (iv === undefined) throw new Failure('IV is required to decrypt secret');
  const vector = fromBase64(new TextEncoder().encode(iv));
  if (vector.length !== BLOCK_BYTES) {
    throw new Failure(`IV should be ${BLOCK_BYTES} bytes in length not ${vector.length}`);
  }
  return decrypted(format === 'base64' ? fromBase64(given) : given, key, vector);
}

function givenBytes(data: string | undefined, file: string | undefined): Uint8Array {
  if (data !== undefined && file !== undefined) throw new Failure("'file' and 'data' are mutually exclusive");
  if (data !== undefined) return new TextEncoder().encode(data);
  if (file === undefined) throw new Failure("Either 'file' or 'data' must be provided");
  try {
    return readFileSync(file);
  } catch (error) {
    const text = ERRNO_TEXT[errnoOf(error)] ?? 'Input/output error';
    // a directory can be opened, and not read
    const doing = errnoOf(error) === 'EISDIR' ? 'Error reading' : 'Failed to open';
    throw new Failure(`Unable to read ${file}: ${doing} file “${file}”: ${text}`, { cause: error });
  }
}

/** As GLib decodes it, which QEMU uses: digits in fours, what is left of four is dropped, padding ends nothing.
 *  @throws {@link Failure} for other characters than digits, padding and line ends. */
function fromBase64(text: Uint8Array): Uint8Array {
  const bytes: number[] = [];
  let digits: number[] = [];
  for (const character of text) {
    if (character === NEW_LINE) continue;
    const value = character === PADDING ? 0 : DIGITS.indexOf(String.fromCharCode(character));
    if (value < 0) throw new Failure('Base64 data contains invalid characters');
    digits.push(character === PADDING ? -1 : value);
    if (digits.length < 4) continue;
    const [a, b, c, d] = digits.map((digit) => Math.max(digit, 0)) as [number, number, number, number];
    bytes.push((a << 2) | (b >> 4));
    if (digits[2] !== -1) bytes.push(((b & 0xf) << 4) | (c >> 2));
    if (digits[3] !== -1) bytes.push(((c & 0x3) << 6) | d);
    digits = [];
  }
  return Uint8Array.from(bytes);
}

const DIGITS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const NEW_LINE = 0x0a;
const PADDING = 0x3d;

function decrypted(encrypted: Uint8Array, key: Uint8Array, iv: Uint8Array): Uint8Array {
  if (encrypted.length % BLOCK_BYTES !== 0) {
    throw new Failure(`Length ${encrypted.length} must be a multiple of block size ${BLOCK_BYTES}`);
  }
  if (encrypted.length === 0) return encrypted;
  const { createDecipheriv } = process.getBuiltinModule('node:crypto');
  const decipher = createDecipheriv('aes-256-cbc', key, iv).setAutoPadding(false);
  const padded = decipher.update(encrypted);
  decipher.final();
  const padding = padded[padded.length - 1] as number;
  if (padding > BLOCK_BYTES) {
    padded.fill(0);
    throw new Failure(`Incorrect number of padding bytes (${padding}) found on decrypted data`);
  }
  const secret = new Uint8Array(padded.subarray(0, padded.length - padding));
  padded.fill(0);
  return secret;
}
