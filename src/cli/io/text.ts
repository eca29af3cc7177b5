/** Texts of the shell: sizes, rates and times, the report of a request, dumps. Pure.
 *  Invariant: every format here is C's printf as QEMU calls it, exact halves rounded to even included. */

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/** `64 KiB`, `1.500 MiB`, `20 bytes`; fractions of bytes have six digits. */
export function sizeText(bytes: number): string {
  let power = 0;
  let value = bytes;
  while (value >= 1024 && power < UNITS.length - 1) {
    value /= 1024;
    power++;
  }
  const text = power === 0 ? value.toFixed(6) : fixed3(value);
  const whole = text.indexOf('.000');
  return `${whole < 0 ? text : text.slice(0, whole)} ${UNITS[power]}`;
}

/** C's `%.3f`. Only odd sixteenths lie exactly between two thousandths. */
export function fixed3(value: number): string {
  const sixteenths = value * 16;
  if (!Number.isInteger(sixteenths) || sixteenths % 2 === 0) return value.toFixed(3);
  const floor = Math.floor(value * 1000);
  return ((floor % 2 === 0 ? floor : floor + 1) / 1000).toFixed(3);
}

/** `00.02 sec`, with minutes `0:01:02.50`. */
function timeText(seconds: number, whole: boolean): string {
  const rest = (seconds % 60).toFixed(2).padStart(5, '0');
  const minutes = Math.floor(seconds / 60);
  if (minutes === 0 && !whole) return `${rest} sec`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, '0')}:${rest}`;
}

export interface Report {
  /** `read`, `wrote`, `discard`. */
  readonly did: string;
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** How long it took. */
  readonly milliseconds: number;
  /** `-C`: one line for programs. */
  readonly brief: boolean;
}

/** What a request that succeeded says. */
export function reportText({ did, offset, length, milliseconds, brief }: Report): string {
  // A clock that stood still would make the rates infinite.
  const seconds = Math.max(milliseconds, 1e-6) / 1000;
  const time = timeText(seconds, brief);
  if (brief) return `${length},1,${time},${(length / seconds).toFixed(3)},${(1 / seconds).toFixed(3)}\n`;
  const rates = `${sizeText(length / seconds)}/sec and ${(1 / seconds).toFixed(4)} ops/sec`;
  return `${did} ${length}/${length} bytes at offset ${offset}\n${sizeText(length)}, 1 ops; ${time} (${rates})\n`;
}

/** Bytes of a line. */
const LINE = 16;

/** Lines of 16 bytes, as numbers and as characters; the last one ends with its bytes.
 *  @param offset of the first byte. */
export function dumpText(bytes: Uint8Array, offset: number): string {
  const lines: string[] = [];
  for (let at = 0; at < bytes.length; at += LINE) {
    const line = bytes.subarray(at, at + LINE);
    let numbers = '';
    let characters = '';
    for (const byte of line) {
      numbers += `${byte.toString(16).padStart(2, '0')} `;
      characters += isGraphic(byte) ? String.fromCharCode(byte) : '.';
    }
    lines.push(`${(offset + at).toString(16).padStart(8, '0')}:  ${numbers} ${characters}\n`);
  }
  return lines.join('');
}

/** C's isalnum: everything else is a point. */
function isGraphic(byte: number): boolean {
  return (byte >= 48 && byte <= 57) || (byte >= 65 && byte <= 90) || (byte >= 97 && byte <= 122);
}
