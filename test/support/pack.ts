/** The "compression" of the test format: a sector that repeats its first four bytes is stored as these four. Pure. */
import { BlockError } from '../../src/base/errors.ts';

const SECTOR = 512;

/** Packs one unit (short ones are padded with zeros); `undefined` when it does not get smaller. */
export function packUnit(guest: Uint8Array, unit: number): Uint8Array | undefined {
  const whole = new Uint8Array(unit);
  whole.set(guest);
  const out = new Uint8Array(unit);
  let length = 0;
  for (let at = 0; at < unit; at += SECTOR) {
    const sector = whole.subarray(at, at + SECTOR);
    const repeats = sector.every((byte, i) => byte === sector[i % 4]);
    const stored = repeats ? 4 : SECTOR;
    if (length + 1 + stored > unit) return undefined;
    out[length] = repeats ? 1 : 2;
    out.set(sector.subarray(0, stored), length + 1);
    length += 1 + stored;
  }
  return out.slice(0, length);
}

/** @throws {@link BlockError} CORRUPT. */
export function unpackUnit(packed: Uint8Array, unit: number): Uint8Array {
  const out = new Uint8Array(unit);
  let at = 0;
  for (let to = 0; to < unit; to += SECTOR) {
    const kind = packed[at];
    if (kind !== 1 && kind !== 2) throw new BlockError('CORRUPT', `packed sector of unknown kind ${kind}`);
    const stored = kind === 1 ? 4 : SECTOR;
    if (at + 1 + stored > packed.length) throw new BlockError('CORRUPT', 'packed unit ends early');
    for (let i = 0; i < SECTOR; i++) out[to + i] = packed[at + 1 + (i % stored)] as number;
    at += 1 + stored;
  }
  return out;
}
