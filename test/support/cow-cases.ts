/** Random cow files, as descriptions: every layout, and the spots where one layout can be taken for another. Owns what detection may say of each;
 *  independent of the library. */
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { COW_IMAGE_LAYOUTS, type CowImageLayout, type CowImageSpec, cowAreas } from './cow-image.ts';

export const HYBRID = 'hybrid-v3-over-v2-32';

export type Aim = 'nothing' | 'QEMU as UML' | 'UML as QEMU' | 'shift by 4' | 'hybrid' | 'v3 as hybrid';

export interface CowCase {
  readonly aim: Aim;
  readonly spec: CowImageSpec;
  /** What detection has to say. */
  readonly layout: string;
  /** The backing file: there as recorded, there with another size, not there. */
  readonly backing: 'as recorded' | 'changed' | 'unknown';
  /** What stood behind the name of a hybrid. */
  readonly memory?: 'old header' | 'nothing';
  /** What the other layout reads: disk size and time. */
  readonly other?: { readonly size: number; readonly mtime: number };
  readonly garbage: boolean;
}

/** Makes one case after the other. */
export class CowCaseMaker {
  readonly #random: () => number;

  constructor(seed: number) {
    this.#random = seededRandom(seed);
  }

  next(): CowCase {
    const kind = this.#below(10);
    if (kind < 5) return this.#plain();
    if (kind < 7) return this.#qemuAsUml();
    if (kind < 8) return this.#umlAsQemu();
    if (kind < 9) return this.#shifted();
    return this.#chance(0.7) ? this.#hybrid() : this.#v3AsHybrid();
  }

  #below(limit: number): number {
    return below(this.#random, limit);
  }

  #chance(probability: number): boolean {
    return this.#random() < probability;
  }

  #pick<T>(from: readonly T[]): T {
    return from[this.#below(from.length)] as T;
  }

  #backing(): CowCase['backing'] {
    return this.#pick(['as recorded', 'as recorded', 'changed', 'unknown', 'unknown', 'unknown']);
  }

  #name(limit: number): string {
    const length = this.#chance(0.9) ? 5 + this.#below(60) : 5 + this.#below(limit - 5);
    return `/${'abcdefghijk/'.repeat(Math.ceil(length / 12))}`.slice(0, length);
  }

  #time(): number {
    return 700_000_000 + this.#below(1_400_000_000);
  }

  /** 512 bytes to 16 GiB, mostly; sometimes up to 64 TiB. */
  #sectors(): number {
    const most = this.#chance(0.05) ? 37 : 25;
    const sectors = Math.floor(2 ** (this.#random() * most));
    return Math.max(1, this.#chance(0.3) ? sectors - (sectors % 4096) : sectors);
  }

  #present(sectors: number): number[] {
    const found = new Set<number>();
    const count = this.#chance(0.2) ? 0 : this.#below(40);
    while (found.size < Math.min(count, sectors)) {
      let sector = this.#below(this.#chance(0.3) ? Math.min(sectors, 64) : sectors);
      for (let run = this.#below(8); run >= 0 && sector < sectors; run--) found.add(sector++);
    }
    if (this.#chance(0.2)) found.add(sectors - 1);
    return [...found];
  }

  /** Noise, zeros, or a hole. */
  #data(sectorSize: number): (sector: number) => Uint8Array | undefined {
    const kind = this.#below(3);
    if (kind === 0) return () => undefined;
    return kind === 1 ? () => new Uint8Array(sectorSize) : () => noise(this.#random, sectorSize);
  }

  #common(layout: CowImageLayout, sectors: number): CowImageSpec & { present: number[] } {
    const qemu = /qemu/.test(layout);
    const sectorSize = !qemu && this.#chance(0.1) ? this.#pick([1024, 4096, 65536]) : 512;
    const partial = !qemu && this.#chance(0.1) ? this.#below(sectorSize) : 0;
    const unnamed = qemu && this.#chance(0.2);
    return {
      layout,
      size: sectors * sectorSize - partial,
      backingName: unnamed ? '' : this.#name(/v1/.test(layout) ? 255 : qemu ? 1023 : 4095),
      mtime: qemu && (unnamed || this.#chance(0.2)) ? 0 : this.#time(),
      sectorSize,
      alignment: this.#pick([4096, 4096, 4096, 512, 1024, 8192, 65536, 2 ** 24]),
      present: this.#present(sectors),
      data: this.#data(sectorSize),
      ...(layout === 'v3-broken' ? { padding: this.#below(2 ** 32) } : {}),
      ...(!qemu && this.#chance(0.5) ? { garbage: () => this.#below(256) } : {}),
    };
  }

  #case(aim: Aim, spec: CowImageSpec, more: Partial<CowCase> = {}): CowCase {
    const garbage = spec.garbage !== undefined;
    return { aim, spec, layout: spec.layout, backing: this.#backing(), garbage, ...more };
  }

  #plain(): CowCase {
    return this.#case('nothing', this.#common(this.#pick(COW_IMAGE_LAYOUTS), this.#sectors()));
  }

  /** Dirty sectors 24400 to 24600 that make a header of UML's version 2. */
  #qemuAsUml(): CowCase {
    const layout = this.#pick(['v2-qemu-i386', 'v2-qemu-x86_64'] as const);
    const sectors = 25_000 + this.#below(this.#chance(0.5) ? 40_000 : 4_000_000);
    const spec = this.#common(layout, sectors);
    const sizeAt = this.#pick([4108, 4112]);
    const sizes = [spec.size, 512 * (24_600 + this.#below(100_000)), 512 * this.#below(2 ** 23)];
    const other = { size: this.#pick(sizes), mtime: this.#pick([this.#time(), 0, this.#below(2 ** 32)]) };
    const bytes = new Uint8Array(sizeAt + 12 - 4104);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, other.mtime);
    view.setBigUint64(sizeAt - 4104, BigInt(other.size));
    view.setUint32(sizeAt - 4104 + 8, 512);
    const { bitmapOffset } = cowAreas(spec);
    const present = this.#chance(0.5) ? [] : spec.present.filter((sector) => sector < (4104 - bitmapOffset) * 8);
    for (let at = 0; at < bytes.length * 8; at++) {
      const set = ((bytes[Math.floor(at / 8)] as number) & (1 << (at % 8))) !== 0;
      if (set) present.push((4104 - bitmapOffset) * 8 + at);
    }
    const data = this.#chance(0.8) ? () => undefined : spec.data;
    return this.#case('QEMU as UML', { ...spec, present, ...(data === undefined ? {} : { data }) }, { other });
  }

  /** What the kernel's memory held behind the name, that makes a header of QEMU's. */
  #umlAsQemu(): CowCase {
    const spec = this.#common(this.#pick(['v2-uml-32', 'v2-uml-64'] as const), this.#sectors());
    const sizeAt = this.#pick([1036, 1040]);
    const size = this.#pick([spec.size - (spec.size % 512), 512 * Math.floor(spec.size / 512) + 4096]);
    const aimed = new DataView(new ArrayBuffer(12));
    aimed.setBigUint64(0, BigInt(size));
    aimed.setUint32(8, 512);
    const garbage = (at: number): number =>
      at >= sizeAt && at < sizeAt + 12 ? aimed.getUint8(at - sizeAt) : 1 + this.#below(255);
    return this.#case('UML as QEMU', { ...spec, backingName: this.#name(1000), garbage });
  }

  /** A 32-bit header that makes a 64-bit one together with the first bits. */
  #shifted(): CowCase {
    const layout = this.#pick(['v2-uml-32', 'v2-qemu-i386', 'v1-le32'] as const);
    const v1 = layout === 'v1-le32';
    const high = 1 + this.#below(this.#chance(0.4) ? 4096 : 8);
    const low = v1 ? 0 : this.#pick(layout === 'v2-uml-32' ? [1, 17, 512, 1024] : [512, 1024]);
    const size = high * 2 ** 32 + low;
    const spec = this.#common(layout, 1);
    const first = v1 ? 9 : 17;
    const sectors = Math.ceil(size / 512);
    // far enough out for the other bitmap to fit into the file
    const far = Math.floor(Math.min(sectors - 1, (1 + this.#random() * 3) * ((low || 512) * 2048 + 100)));
    const present = this.#chance(0.8) ? [first, far] : [first, far, ...this.#present(sectors)];
    const other = { size: (v1 ? 512 : low) * 2 ** 32 + (v1 ? high : 512), mtime: spec.mtime };
    const straight = { ...spec, size, sectorSize: 512, present, data: () => undefined };
    // the tools of 2003 gave UML's files their full length from the beginning
    const fileSize = cowAreas(straight).dataOffset + size;
    const aimed: CowImageSpec = { ...straight, ...(this.#chance(0.5) ? { fileSize } : {}) };
    return this.#case('shift by 4', aimed, { other });
  }

  /** An alignment that no page has, and bits where a hybrid could have them as well. */
  #v3AsHybrid(): CowCase {
    const sectors = 4096 * (1 + this.#below(1000));
    const spec = this.#common('v3', sectors);
    const present = this.#chance(0.5) ? spec.present : [this.#below(sectors)];
    return this.#case('v3 as hybrid', {
      ...spec,
      size: sectors * 512,
      sectorSize: 512,
      alignment: 512,
      present,
      data: this.#data(512),
    });
  }

  #hybrid(): CowCase {
    const spec = this.#common('v2-uml-32', this.#sectors());
    const base = {
      ...spec,
      sectorSize: 512,
      size: spec.size - (spec.size % 512) || 512,
      backingName: this.#name(4000),
    };
    const sectors = base.size / 512;
    const stored = sectors - (sectors % 8);
    const present = spec.present.filter((sector) => sector < stored);
    const full = cowAreas({ ...base, layout: 'v2-uml-32' }).dataOffset + base.size;
    const { garbage: _, ...clean } = base;
    const aimed = { ...clean, present, data: () => undefined, ...(this.#chance(0.5) ? { fileSize: full } : {}) };
    const memory = this.#pick(['old header', 'nothing'] as const);
    return this.#case('hybrid', aimed, { layout: HYBRID, memory });
  }
}

/** The known failure cases of the format, from what the case was made of. */
export function mayBeAmbiguous({ aim, spec, backing, other, memory }: CowCase): boolean {
  const { size, mtime, backingName, alignment, sectorSize, present = [] } = spec;
  const told = backing === 'as recorded' && backingName !== '' && other?.size !== size;
  // 2: without a backing file, where the other time is the likelier
  if (aim === 'QEMU as UML' && other !== undefined) return !told && mtime === 0 && other.mtime > 600_000_000;
  // 3: a shift, where the true disk is not the one that is smaller than every shifted one
  if (aim === 'shift by 4' && other !== undefined) return !told && !(size < 2 ** 41 && other.size >= 2 ** 41);
  // 5: hybrids without a bit where no v3 has one, and without what the old header leaves
  const bits = [...present];
  if (aim === 'hybrid') return memory === 'nothing' && !bits.some((sector) => sector >= 128 && sector < 3904);
  // 5, seen from the other side: a v3 that may be one
  if (spec.layout !== 'v3' || alignment !== 512 || sectorSize !== 512) return false;
  const sectors = Math.ceil(size / 512);
  const dataOfV2 = Math.ceil((4120 + Math.floor(sectors / 8)) / 512) * 512;
  const spill = 4120 + Math.ceil(sectors / 64) * 8 + 16;
  return cowAreas(spec).dataOffset === dataOfV2 && !bits.some((sector) => 4608 + Math.floor(sector / 8) >= spill);
}

/** A hybrid whose bits are all lost is the same disk under both readings. */
export function isRight({ layout, memory, spec }: CowCase, found: string): boolean {
  if (found === layout) return true;
  return layout === HYBRID && found === 'v3' && memory === 'nothing' && ![...(spec.present ?? [])].some((s) => s >= 64);
}
