/** Declarative codec for cold on-disk structs (headers, directory entries): a table of fields, checked when it is declared.
 *  Hot tables (L2, refcount blocks, bitmaps) are read raw and never decoded. Pure.
 *  Invariant: fields neither overlap nor leave the struct; gaps must be declared with `pad`. */
import { BlockError, hex } from '../base/errors.ts';
import { getU64, setU64 } from './ints.ts';

export interface Field<T> {
  readonly size: number;
  get(view: DataView, offset: number, littleEndian: boolean): T;
  set(view: DataView, offset: number, value: T, littleEndian: boolean): void;
}

export const u8: Field<number> = {
  size: 1,
  get: (view, at) => view.getUint8(at),
  set: (view, at, value) => view.setUint8(at, value),
};
export const u16: Field<number> = {
  size: 2,
  get: (view, at, le) => view.getUint16(at, le),
  set: (view, at, value, le) => view.setUint16(at, value, le),
};
export const u32: Field<number> = {
  size: 4,
  get: (view, at, le) => view.getUint32(at, le),
  set: (view, at, value, le) => view.setUint32(at, value, le),
};
export const i32: Field<number> = {
  size: 4,
  get: (view, at, le) => view.getInt32(at, le),
  set: (view, at, value, le) => view.setInt32(at, value, le),
};
/** An offset or size: `Infinity` when above 2^53-1, so that every bound check refuses it. */
export const u64: Field<number> = {
  size: 8,
  get: (view, at, le) => getU64(view, at, le),
  set: (view, at, value, le) => setU64(view, at, value, le),
};
/** A set of 64 flags. */
export const flags64: Field<bigint> = {
  size: 8,
  get: (view, at, le) => view.getBigUint64(at, le),
  set: (view, at, value, le) => view.setBigUint64(at, value, le),
};
/** `length` raw bytes. */
export function bytes(length: number): Field<Uint8Array> {
  return {
    size: length,
    get: (view, at) => new Uint8Array(view.buffer, view.byteOffset + at, length).slice(),
    set: (view, at, value) => new Uint8Array(view.buffer, view.byteOffset + at, length).set(value.subarray(0, length)),
  };
}
/** Bytes that carry no meaning: read as undefined, written as zero. */
export function pad(length: number): Field<undefined> {
  return {
    size: length,
    get: () => undefined,
    set: (view, at) => void new Uint8Array(view.buffer, view.byteOffset + at, length).fill(0),
  };
}

// biome-ignore lint/suspicious/noExplicitAny: a field table is heterogeneous; ValueOf recovers each type
type Fields = Readonly<Record<string, readonly [offset: number, field: Field<any>]>>;
type ValueOf<F> = F extends Field<infer T> ? T : never;
export type StructValue<F extends Fields> = { -readonly [K in keyof F]: ValueOf<F[K][1]> };

export interface Struct<F extends Fields> {
  readonly name: string;
  readonly size: number;
  readonly fields: F;
  decode(from: Uint8Array, at?: number): StructValue<F>;
  encode(value: StructValue<F>, into?: Uint8Array, at?: number): Uint8Array;
}

/** Declares a struct of `size` bytes. Each field states its offset, as the specification does; a mistake throws at load.
 *  @throws {@link BlockError} INTERNAL when fields overlap, leave gaps or do not fill `size`. */
export function struct<const F extends Fields>(
  name: string,
  size: number,
  fields: F,
  options: { readonly littleEndian?: boolean } = {},
): Struct<F> {
  const littleEndian = options.littleEndian === true;
  let end = 0;
  for (const [key, [offset, field]] of Object.entries(fields)) {
    if (offset !== end) {
      throw new BlockError(
        'INTERNAL',
        `struct ${name}: field ${key} is declared at ${offset}, the previous ends at ${end}`,
      );
    }
    end = offset + field.size;
  }
  if (end !== size) throw new BlockError('INTERNAL', `struct ${name}: fields end at ${end}, the struct at ${size}`);
  return {
    name,
    size,
    fields,
    decode(from, at = 0) {
      if (from.length - at < size) {
        throw new BlockError('CORRUPT', `${name} at ${hex(at)} needs ${size} bytes, ${from.length - at} are there`);
      }
      const view = new DataView(from.buffer, from.byteOffset + at, size);
      const value: Record<string, unknown> = {};
      for (const [key, [offset, field]] of Object.entries(fields)) value[key] = field.get(view, offset, littleEndian);
      return value as StructValue<F>;
    },
    encode(value, into = new Uint8Array(size), at = 0) {
      const view = new DataView(into.buffer, into.byteOffset + at, size);
      for (const [key, [offset, field]] of Object.entries(fields)) {
        field.set(view, offset, (value as Record<string, unknown>)[key], littleEndian);
      }
      return into;
    },
  };
}
