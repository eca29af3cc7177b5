/** Reads files out of an ext2 file system in memory: enough to see what a guest has written. No extents, no journal. */
const ROOT_INODE = 2;
const DIRECT = 12;

export class Ext2 {
  readonly #disk: Buffer;
  readonly #blockSize: number;
  readonly #inodesPerGroup: number;
  readonly #inodeSize: number;
  /** Byte offset of the group descriptors. */
  readonly #groups: number;

  constructor(disk: Uint8Array) {
    this.#disk = Buffer.from(disk.buffer, disk.byteOffset, disk.byteLength);
    const superblock = this.#disk.subarray(1024, 2048);
    const magic = superblock.readUInt16LE(56);
    if (magic !== 0xef53) throw new Error(`no ext2 file system: magic 0x${magic.toString(16)}`);
    this.#blockSize = 1024 << superblock.readUInt32LE(24);
    this.#inodesPerGroup = superblock.readUInt32LE(40);
    this.#inodeSize = superblock.readUInt32LE(76) === 0 ? 128 : superblock.readUInt16LE(88);
    this.#groups = (superblock.readUInt32LE(20) + 1) * this.#blockSize;
  }

  /** Whether it was unmounted properly. */
  get clean(): boolean {
    return (this.#disk.readUInt16LE(1024 + 58) & 1) === 1;
  }

  /** @param path `letters/hello.txt` */
  read(path: string): Buffer {
    let inode = ROOT_INODE;
    for (const name of path.split('/')) inode = this.#lookUp(inode, name);
    return this.#content(inode);
  }

  #lookUp(directory: number, wanted: string): number {
    const entries = this.#content(directory);
    for (let at = 0; at < entries.length; at += entries.readUInt16LE(at + 4)) {
      const name = entries.toString('latin1', at + 8, at + 8 + entries.readUInt8(at + 6));
      const inode = entries.readUInt32LE(at);
      if (inode !== 0 && name === wanted) return inode;
    }
    throw new Error(`${wanted}: no such file`);
  }

  #content(inode: number): Buffer {
    const group = this.#groups + 32 * Math.floor((inode - 1) / this.#inodesPerGroup);
    const table = this.#disk.readUInt32LE(group + 8) * this.#blockSize;
    const at = table + ((inode - 1) % this.#inodesPerGroup) * this.#inodeSize;
    const size = this.#disk.readUInt32LE(at + 4);
    const pieces: Buffer[] = [];
    for (let slot = 0; slot < 15; slot++) {
      const level = Math.max(0, slot - DIRECT + 1);
      this.#collect(this.#disk.readUInt32LE(at + 40 + 4 * slot), level, pieces, Math.ceil(size / this.#blockSize));
    }
    return Buffer.concat(pieces).subarray(0, size);
  }

  /** The data blocks below a block of pointers of that level; level 0 is data. Block 0 is a hole. */
  #collect(block: number, level: number, into: Buffer[], limit: number): void {
    if (into.length >= limit) return;
    const bytes = block === 0 ? Buffer.alloc(this.#blockSize) : this.#block(block);
    if (level === 0) {
      into.push(bytes);
      return;
    }
    for (let at = 0; at < this.#blockSize; at += 4) this.#collect(bytes.readUInt32LE(at), level - 1, into, limit);
  }

  #block(number: number): Buffer {
    return this.#disk.subarray(number * this.#blockSize, (number + 1) * this.#blockSize);
  }
}
