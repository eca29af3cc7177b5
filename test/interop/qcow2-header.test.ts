/** Headers that qemu-img refuses, with its own sentences: the same ones must be refused here, and for the same reason. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { decodeHeader, encodeHeader } from '../../src/formats/qcow2/header.ts';
import { describeWithQemu, failureOf, qemuImg, run, scratchDirectory } from '../formats/qcow2/support.ts';

interface Refusal {
  readonly reason: string;
  /** What qemu-img says. */
  readonly sentence: string;
  readonly base?: 'plain' | 'v2' | 'backing' | 'bitmaps' | 'small' | 'large';
  readonly writable?: boolean;
  /** `info` asks for less, and does not notice. */
  readonly command?: 'compare';
  damage(image: Buffer): void;
}

const put32 = (at: number, value: number) => (image: Buffer) => void image.writeUInt32BE(value, at);
const put64 = (at: number, value: bigint) => (image: Buffer) => void image.writeBigUInt64BE(value, at);
const all =
  (...steps: ((image: Buffer) => void)[]) =>
  (image: Buffer) => {
    for (const step of steps) step(image);
  };
/** Where the first extension begins. */
const EXTENSIONS = 112;
/** Writes an extension in front of all others, which are dropped. */
const extension = (magic: number, data: Buffer) => (image: Buffer) => {
  image.fill(0, EXTENSIONS, 1024);
  image.writeUInt32BE(magic, EXTENSIONS);
  image.writeUInt32BE(data.length, EXTENSIONS + 4);
  data.copy(image, EXTENSIONS + 8);
};
const bitmaps = (count: number, reserved: number, size: bigint, offset: bigint) => {
  const data = Buffer.alloc(24);
  data.writeUInt32BE(count, 0);
  data.writeUInt32BE(reserved, 4);
  data.writeBigUInt64BE(size, 8);
  data.writeBigUInt64BE(offset, 16);
  return all(put64(88, 1n), extension(0x23852875, data));
};
/** An own feature name table that names bit 7. */
const named = Buffer.alloc(96);
named[1] = 7;
named.write('the seventh feature', 2);

const REFUSALS: readonly Refusal[] = [
  { reason: 'qcow2.magic', sentence: 'Image is not in qcow2 format', damage: put32(0, 0x514649fa) },
  { reason: 'qcow2.version', sentence: 'Unsupported qcow2 version 9', damage: put32(4, 9) },
  { reason: 'qcow2.version', sentence: 'Unsupported qcow2 version 1', damage: put32(4, 1) },
  { reason: 'qcow2.cluster-bits', sentence: 'Unsupported cluster size: 2^8', damage: put32(20, 8) },
  { reason: 'qcow2.cluster-bits', sentence: 'Unsupported cluster size: 2^22', damage: put32(20, 22) },
  { reason: 'qcow2.header-length-short', sentence: 'qcow2 header too short', damage: put32(100, 103) },
  { reason: 'qcow2.header-length-long', sentence: 'qcow2 header exceeds cluster size', damage: put32(100, 65537) },
  { reason: 'qcow2.backing-offset', sentence: 'Invalid backing file offset', damage: put64(8, 65537n) },
  { reason: 'qcow2.backing-offset', sentence: 'Invalid backing file offset', damage: put64(8, 1n << 60n) },
  {
    reason: 'qcow2.compression-type',
    sentence: 'qcow2: unknown compression type: 2',
    damage: (image) => void image.writeUInt8(2, 104),
  },
  {
    reason: 'qcow2.compression-bit',
    sentence: 'qcow2: Compression type incompatible feature bit must be set',
    damage: (image) => void image.writeUInt8(1, 104),
  },
  {
    reason: 'qcow2.compression-bit',
    sentence: 'qcow2: Compression type incompatible feature bit must not be set',
    damage: put64(72, 8n),
  },
  {
    reason: 'qcow2.incompatible-features',
    sentence: 'Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000020',
    damage: put64(72, (1n << 63n) | 32n),
  },
  {
    reason: 'qcow2.incompatible-features',
    sentence: 'Unsupported qcow2 feature(s): the seventh feature, Unknown incompatible feature: 100',
    damage: all(put64(72, 384n), extension(0x6803f857, named)),
  },
  {
    reason: 'qcow2.corrupt',
    sentence: 'qcow2: Image is corrupt; cannot be opened read/write',
    writable: true,
    damage: put64(72, 2n),
  },
  {
    reason: 'qcow2.subcluster-size',
    sentence: 'Unsupported subcluster size: 16',
    base: 'small',
    damage: put64(72, 16n),
  },
  {
    reason: 'qcow2.refcount-order',
    sentence: 'Reference count entry width too large; may not exceed 64 bits',
    damage: put32(96, 7),
  },
  {
    reason: 'qcow2.refcount-table-missing',
    sentence: 'Image does not contain a reference count table',
    damage: put32(56, 0),
  },
  { reason: 'qcow2.refcount-table-size', sentence: 'Reference count table too large', damage: put32(56, 129) },
  {
    reason: 'qcow2.refcount-table-offset',
    sentence: 'Reference count table offset invalid',
    damage: put64(48, 65537n),
  },
  { reason: 'qcow2.snapshots-size', sentence: 'Snapshot table too large', damage: put32(60, 65537) },
  {
    reason: 'qcow2.snapshots-offset',
    sentence: 'Snapshot table offset invalid',
    damage: all(put32(60, 1), put64(64, 65000n)),
  },
  { reason: 'qcow2.l1-size', sentence: 'Active L1 table too large', damage: put32(36, 4194305) },
  { reason: 'qcow2.l1-offset', sentence: 'Active L1 table offset invalid', damage: put64(40, 512n) },
  { reason: 'qcow2.l1-offset', sentence: 'Active L1 table offset invalid', damage: put64(40, 0x7fff_ffff_ffff_ffffn) },
  { reason: 'qcow2.image-too-big', sentence: 'Image is too big', damage: put64(24, 1n << 62n) },
  { reason: 'qcow2.l1-too-small', sentence: 'L1 table is too small', damage: put64(24, (1n << 29n) + 1n) },
  { reason: 'qcow2.encryption-method', sentence: 'Unsupported encryption method 3', damage: put32(32, 3) },
  {
    reason: 'qcow2.extension-too-large',
    sentence: 'Header extension too large',
    damage: put32(EXTENSIONS + 4, 0xffff_ffff),
  },
  {
    reason: 'qcow2.extension-too-large',
    sentence: 'Header extension too large',
    damage: all(put64(8, 116n), put32(16, 1)),
  },
  {
    reason: 'qcow2.backing-format-length',
    sentence: 'ERROR: ext_backing_format: len=16 too large (>=16)',
    damage: extension(0xe2792aca, Buffer.alloc(16, 'a')),
  },
  {
    reason: 'qcow2.crypto-unexpected',
    sentence: 'CRYPTO header extension only expected with LUKS encryption method',
    damage: extension(0x0537be77, Buffer.alloc(16)),
  },
  {
    reason: 'qcow2.bitmaps-length',
    sentence: 'bitmaps_ext: Invalid extension length',
    damage: extension(0x23852875, Buffer.alloc(16)),
  },
  {
    reason: 'qcow2.bitmaps-reserved',
    sentence: 'bitmaps_ext: Reserved field is not zero',
    damage: bitmaps(1, 1, 32n, 65536n),
  },
  {
    reason: 'qcow2.bitmaps-count',
    sentence: 'bitmaps_ext: Image has 65536 bitmaps, exceeding the QEMU supported maximum of 65535',
    damage: bitmaps(65536, 0, 32n, 65536n),
  },
  {
    reason: 'qcow2.bitmaps-none',
    sentence: 'found bitmaps extension with zero bitmaps',
    damage: bitmaps(0, 0, 32n, 65536n),
  },
  {
    reason: 'qcow2.bitmaps-offset',
    sentence: 'bitmaps_ext: invalid bitmap directory offset',
    damage: bitmaps(1, 0, 32n, 65537n),
  },
  {
    reason: 'qcow2.bitmaps-size',
    sentence: 'bitmaps_ext: bitmap directory size (67107841) exceeds the maximum supported size (67107840)',
    damage: bitmaps(1, 0, 67107841n, 65536n),
  },
  {
    reason: 'qcow2.data-file-raw',
    sentence: 'data-file-raw requires a data file',
    command: 'compare',
    damage: put64(88, 2n),
  },
  {
    reason: 'qcow2.backing-name-length',
    sentence: 'Backing file name too long',
    base: 'backing',
    damage: put32(16, 1024),
  },
  {
    reason: 'qcow2.backing-name-length',
    sentence: 'Backing file name too long',
    damage: all(put64(8, 65500n), put32(16, 40)),
  },
];

const BASES: Record<NonNullable<Refusal['base']>, readonly string[]> = {
  plain: ['1M'],
  v2: ['-o', 'compat=0.10', '1M'],
  backing: ['-u', '-b', 'nothing.img', '-F', 'raw', '1M'],
  bitmaps: ['1M'],
  small: ['-o', 'cluster_size=512', '64k'],
  large: ['-o', 'cluster_size=2M,extended_l2=on', '1G'],
};

describeWithQemu('the header', () => {
  const directory = scratchDirectory();

  function make(base: NonNullable<Refusal['base']>): Buffer {
    qemuImg(
      directory,
      'create',
      '-q',
      '-f',
      'qcow2',
      ...BASES[base].slice(0, -1),
      'image',
      BASES[base].at(-1) as string,
    );
    if (base === 'bitmaps') qemuImg(directory, 'bitmap', '--add', 'image', 'b0');
    return readFileSync(join(directory, 'image'));
  }

  it.each(REFUSALS)(
    'is refused by both: $reason ($sentence)',
    async ({ reason, sentence, base = 'plain', writable = false, command, damage }) => {
      const image = make(base);
      damage(image);
      writeFileSync(join(directory, 'image'), image);
      const words = writable
        ? ['snapshot', '-c', 'x']
        : command === 'compare'
          ? ['compare', 'image']
          : ['info', '-f', 'qcow2'];
      const args = [...words, 'image'];
      expect(run('qemu-img', args, directory).stderr).toContain(sentence);
      const refused = await failureOf(() => decodeHeader(image, 'image', { readOnly: !writable, forCheck: false }));
      expect(refused.reason).toBe(reason);
      expect(refused.message).toMatch(/^qcow2 "image": (L1|[a-z0-9])/);
    },
  );

  it.each(Object.keys(BASES) as (keyof typeof BASES)[])(
    'of a %s image is written back as it was read (M-27, Q-012, Q-120)',
    (base) => {
      const image = make(base);
      const header = decodeHeader(image, 'image', { readOnly: false, forCheck: false });
      const cluster = encodeHeader(header, 'image');
      expect(Buffer.compare(cluster, image.subarray(0, cluster.length))).toBe(0);
    },
  );
});
