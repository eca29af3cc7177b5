/** Finds the fields of a sound image: every number of its header, its extensions and its tables, with the kind of thing it is.
 *  Its own small parser, so that a mistake of the library's does not hide in the test of it. */
import type { Anatomy } from '../../core/fuzz.ts';
import { FieldCollector } from '../../core/fuzz-fields.ts';
import { luksFields } from '../../crypto/luks-fuzz.ts';

const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const COMPRESSED = 1n << 62n;
/** Entries taken of each table: the first ones that are set, and some that are not. */
const SET_ENTRIES = 24;
const CLEAR_ENTRIES = 3;

export function anatomyOf(image: Uint8Array): Anatomy {
  return new Dissection(image).result();
}

class Dissection {
  readonly #fields: FieldCollector;
  readonly #clusterSize: number;
  readonly #version: number;
  readonly #headerLength: number;
  readonly #extended: boolean;
  readonly #bitmapDirectory: { offset: number; count: number } | undefined;

  constructor(image: Uint8Array) {
    this.#fields = new FieldCollector(image);
    this.#clusterSize = 2 ** this.#fields.u32(20);
    this.#version = this.#fields.u32(4);
    this.#headerLength = this.#version >= 3 ? this.#fields.u32(100) : 72;
    this.#extended = this.#version >= 3 && (this.#fields.u64(72) & 16n) !== 0n;
    this.#header();
    this.#bitmapDirectory = this.#extensions();
    this.#tables('', this.#fields.place(40), this.#fields.u32(36));
    this.#refcounts();
    this.#snapshots();
    this.#bitmaps();
    const end = Math.ceil(image.length / this.#clusterSize) * this.#clusterSize;
    for (const at of [end - this.#clusterSize, end, end + this.#clusterSize, 16 * end]) this.#fields.landmark(at);
  }

  result(): Anatomy {
    return this.#fields.result(this.#clusterSize);
  }

  #header(): void {
    this.#fields.add('header.version', 4, 4, 'number');
    this.#fields.add('header.backing-offset', 8, 8, 'offset');
    this.#fields.add('header.backing-size', 16, 4, 'number');
    this.#fields.add('header.cluster-bits', 20, 4, 'number');
    this.#fields.add('header.size', 24, 8, 'number');
    this.#fields.add('header.encryption', 32, 4, 'number');
    this.#fields.add('header.l1-size', 36, 4, 'number');
    this.#fields.add('header.l1-offset', 40, 8, 'offset');
    this.#fields.add('header.refcount-table-offset', 48, 8, 'offset');
    this.#fields.add('header.refcount-table-clusters', 56, 4, 'number');
    this.#fields.add('header.snapshots', 60, 4, 'number');
    this.#fields.add('header.snapshots-offset', 64, 8, 'offset');
    if (this.#version >= 3) {
      this.#fields.add('header.incompatible', 72, 8, 'flags');
      this.#fields.add('header.compatible', 80, 8, 'flags');
      this.#fields.add('header.autoclear', 88, 8, 'flags');
      this.#fields.add('header.refcount-order', 96, 4, 'number');
      this.#fields.add('header.length', 100, 4, 'number');
      this.#fields.add('header.compression-type', 104, 1, 'number');
    }
    const name = Number(this.#fields.u64(8));
    this.#fields.text('header.backing-name', name, this.#fields.u32(16));
  }

  #extensions(): { offset: number; count: number } | undefined {
    let bitmaps: { offset: number; count: number } | undefined;
    for (let at = this.#headerLength; ; ) {
      const magic = this.#fields.u32(at);
      const length = this.#fields.u32(at + 4);
      this.#fields.add('extension.magic', at, 4, 'number');
      this.#fields.add('extension.length', at + 4, 4, 'number');
      if (magic === 0) return bitmaps;
      const data = at + 8;
      if (magic === 0x2385_2875) {
        bitmaps = { count: this.#fields.u32(data), offset: this.#fields.place(data + 16) };
        this.#fields.add('bitmaps.count', data, 4, 'number');
        this.#fields.add('bitmaps.reserved', data + 4, 4, 'number');
        this.#fields.add('bitmaps.directory-size', data + 8, 8, 'number');
        this.#fields.add('bitmaps.directory-offset', data + 16, 8, 'offset');
      } else if (magic === 0xe279_2aca || magic === 0x4441_5441) {
        const kind = magic === 0x4441_5441 ? 'extension.data-file-name' : 'extension.backing-format';
        this.#fields.text(kind, data, length);
      } else if (magic === 0x0537_be77) {
        const luks = this.#fields.place(data);
        this.#fields.add('crypto.offset', data, 8, 'offset');
        this.#fields.add('crypto.length', data + 8, 8, 'number');
        for (const { kind, at: inside, bytes, role } of luksFields())
          this.#fields.add(kind, luks + inside, bytes, role);
      } else if (magic === 0x6803_f857) {
        this.#fields.text('extension.feature-name', data, 3);
      }
      at = data + Math.ceil(length / 8) * 8;
    }
  }

  /** An L1 table, its L2 tables and their entries. */
  #tables(prefix: string, l1: number, l1Size: number): void {
    this.#entries(`${prefix}l1`, l1, l1Size, 8, (entry) => {
      const table = Number(entry & OFFSET_MASK);
      if (table === 0) return 'l1';
      this.#fields.landmark(table);
      this.#l2(prefix, table);
      return 'l1';
    });
  }

  #l2(prefix: string, table: number): void {
    const size = this.#extended ? 16 : 8;
    let data = 0;
    this.#entries(`${prefix}l2`, table, this.#clusterSize / size, size, (entry, at) => {
      if (this.#extended && prefix === '') {
        this.#fields.add('l2.subclusters-zero', at + 8, 4, 'flags');
        this.#fields.add('l2.subclusters-allocated', at + 12, 4, 'flags');
      }
      if ((entry & COMPRESSED) !== 0n) return 'l2.compressed';
      const offset = Number(entry & OFFSET_MASK);
      if (offset !== 0 && data++ < 2) this.#fields.landmark(offset);
      if ((entry & 1n) !== 0n && !this.#extended) return 'l2.zero';
      return offset === 0 ? 'l2.unallocated' : 'l2.normal';
    });
  }

  #refcounts(): void {
    const entries = (this.#fields.u32(56) * this.#clusterSize) / 8;
    this.#entries('refcount-table', this.#fields.place(48), entries, 8, (entry) => {
      const block = Number(entry);
      if (block !== 0) this.#block(block);
      return 'refcount-table';
    });
  }

  #block(block: number): void {
    this.#fields.landmark(block);
    const order = this.#version >= 3 ? this.#fields.u32(96) : 4;
    const bytes = Math.max(1, 2 ** order / 8) as 1 | 2 | 4 | 8;
    for (let i = 0, taken = 0; i < this.#clusterSize / bytes && taken < 2 * SET_ENTRIES; i++) {
      const at = block + i * bytes;
      let set = false;
      for (let n = 0; n < bytes; n++) set ||= this.#fields.u8(at + n) !== 0;
      if (!set && taken > 0 && i % 7 !== 0) continue;
      this.#fields.add('refcount', at, bytes, 'number');
      taken++;
    }
  }

  #snapshots(): void {
    let at = this.#fields.place(64);
    for (let index = 0; index < this.#fields.u32(60); index++) {
      const extra = this.#fields.u32(at + 36);
      const lengths = this.#fields.u16(at + 12) + this.#fields.u16(at + 14);
      this.#fields.add('snapshot.l1-offset', at, 8, 'offset');
      this.#fields.add('snapshot.l1-size', at + 8, 4, 'number');
      this.#fields.add('snapshot.id-length', at + 12, 2, 'number');
      this.#fields.add('snapshot.name-length', at + 14, 2, 'number');
      this.#fields.add('snapshot.seconds', at + 16, 4, 'number');
      this.#fields.add('snapshot.nanoseconds', at + 20, 4, 'number');
      this.#fields.add('snapshot.vm-clock', at + 24, 8, 'number');
      this.#fields.add('snapshot.vm-state-size', at + 32, 4, 'number');
      this.#fields.add('snapshot.extra-length', at + 36, 4, 'number');
      if (extra >= 8) this.#fields.add('snapshot.extra-vm-state', at + 40, 8, 'number');
      if (extra >= 16) this.#fields.add('snapshot.extra-disk-size', at + 48, 8, 'number');
      if (extra >= 24) this.#fields.add('snapshot.extra-icount', at + 56, 8, 'number');
      this.#fields.text('snapshot.text', at + 40 + extra, lengths);
      this.#tables('snapshot.', this.#fields.place(at), this.#fields.u32(at + 8));
      at = Math.ceil((at + 40 + extra + lengths) / 8) * 8;
    }
  }

  #bitmaps(): void {
    if (this.#bitmapDirectory === undefined) return;
    let at = this.#bitmapDirectory.offset;
    for (let index = 0; index < this.#bitmapDirectory.count; index++) {
      const name = this.#fields.u16(at + 18);
      this.#fields.add('bitmap.table-offset', at, 8, 'offset');
      this.#fields.add('bitmap.table-size', at + 8, 4, 'number');
      this.#fields.add('bitmap.flags', at + 12, 4, 'flags');
      this.#fields.add('bitmap.type', at + 16, 1, 'number');
      this.#fields.add('bitmap.granularity', at + 17, 1, 'number');
      this.#fields.add('bitmap.name-length', at + 18, 2, 'number');
      this.#fields.add('bitmap.extra-length', at + 20, 4, 'number');
      this.#entries('bitmap.table', this.#fields.place(at), this.#fields.u32(at + 8), 8, () => 'bitmap.table-entry');
      at = Math.ceil((at + 24 + name) / 8) * 8;
    }
  }

  #entries(
    label: string,
    table: number,
    count: number,
    bytes: number,
    judge: (entry: bigint, at: number) => string,
  ): void {
    let set = 0;
    let clear = 0;
    for (let i = 0; i < count; i++) {
      const at = table + i * bytes;
      if (at + bytes > this.#fields.size) return;
      const entry = this.#fields.u64(at);
      if (entry === 0n ? clear >= CLEAR_ENTRIES : set >= SET_ENTRIES) continue;
      if (entry === 0n) clear++;
      else set++;
      const kind = judge(entry, at);
      this.#fields.add(label.startsWith('snapshot.') ? `snapshot.${kind.slice(0, 2)}` : kind, at, 8, 'entry');
    }
  }
}
