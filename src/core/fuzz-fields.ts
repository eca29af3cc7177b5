/** Collects the fields of one image for the fuzzer. Owns the reading of their old values.
 *  Invariant: a field lies wholly inside the file. */
import type { Anatomy, FuzzField, FuzzRole } from './fuzz.ts';

export class FieldCollector {
  readonly #view: DataView;
  readonly #littleEndian: boolean;
  readonly #fields: FuzzField[] = [];
  readonly #landmarks = new Set<number>([0]);

  constructor(image: Uint8Array, littleEndian = false) {
    this.#view = new DataView(image.buffer, image.byteOffset, image.length);
    this.#littleEndian = littleEndian;
  }

  /** Of the file, bytes. */
  get size(): number {
    return this.#view.byteLength;
  }

  u8(at: number): number {
    return this.#view.getUint8(at);
  }
  u16(at: number): number {
    return this.#view.getUint16(at, this.#littleEndian);
  }
  u32(at: number): number {
    return this.#view.getUint32(at, this.#littleEndian);
  }
  u64(at: number): bigint {
    return this.#view.getBigUint64(at, this.#littleEndian);
  }

  /** The offset that stands at `at`, and that of something. */
  place(at: number): number {
    const offset = Number(this.u64(at));
    if (offset !== 0) this.landmark(offset);
    return offset;
  }

  landmark(offset: number): void {
    this.#landmarks.add(offset);
  }

  /** Nothing, where it does not lie inside the file. */
  add(kind: string, at: number, bytes: FuzzField['bytes'], role: FuzzRole): void {
    if (at + bytes > this.size) return;
    const old =
      bytes === 8 ? this.u64(at) : BigInt(bytes === 4 ? this.u32(at) : bytes === 2 ? this.u16(at) : this.u8(at));
    this.#fields.push({ kind, at, bytes, role, old, ...(this.#littleEndian ? { littleEndian: true } : {}) });
  }

  /** Each byte of a name. */
  text(kind: string, at: number, length: number): void {
    for (let i = 0; i < length; i++) this.add(kind, at + i, 1, 'text');
  }

  result(clusterSize: number): Anatomy {
    return { clusterSize, fields: this.#fields, landmarks: [...this.#landmarks] };
  }
}
