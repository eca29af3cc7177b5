/** Images for the audit: one for each thing that it looks for, made from small sound ones by changing what the rule is about. */

import type { LuksAlgorithms } from '../../src/crypto/algorithms.ts';
import { emptySlots, encodeLuksHeader, LUKS_HEADER_BYTES, luksHeaderArea } from '../../src/crypto/luks-header.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { KiB, MiB, make, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';
import { cowImage } from './cow-image.ts';
import { goldenBytes } from './golden-cow.ts';

const CLUSTER = 64 * KiB;
const GiB = 1024 * MiB;
/** Where a new image has its parts. */
const REFCOUNTS = 2 * CLUSTER;
const L1 = 3 * CLUSTER;

export const IMAGE = 'image.qcow2';

/** What lies in a file, so that only what is there takes memory. */
export type Made = Uint8Array | MemoryStore;

export interface AuditCase {
  readonly id: string;
  readonly make: () => Promise<Made>;
  /** Asked for by name. */
  readonly format?: string;
}

export function u32(bytes: Uint8Array, at: number, value: number): void {
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(at, value);
}

export function u64(bytes: Uint8Array, at: number, value: number | bigint): void {
  new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(at, BigInt(value));
}

function get64(bytes: Uint8Array, at: number): number {
  return Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(at) & 0x00ff_ffff_ffff_fe00n);
}

/** A qcow2 image of 1 MiB with two clusters of content. */
export async function sound(size = MiB, clusterSize = CLUSTER): Promise<Uint8Array> {
  const files = new MemoryFiles();
  await make(files, IMAGE, { size, options: { clusterSize } }, [[0, 2 * clusterSize, 7]]);
  return files.bytes(IMAGE);
}

interface Parts {
  /** Of the first L2 table. */
  readonly l2: number;
  readonly data: number;
}

function partsOf(bytes: Uint8Array): Parts {
  const l2 = get64(bytes, L1);
  return { l2, data: get64(bytes, l2) };
}

function damaged(change: (bytes: Uint8Array, parts: Parts) => void, size?: number): () => Promise<Uint8Array> {
  return async () => {
    const bytes = await sound(size);
    change(bytes, partsOf(bytes));
    return bytes;
  };
}

/** A header with other extensions and another backing file. */
export function rewritten(
  bytes: Uint8Array,
  {
    backing,
    format,
    extensions = [],
  }: { backing?: string | Uint8Array; format?: string; extensions?: readonly (readonly [number, Uint8Array])[] },
): Uint8Array {
  const encoder = new TextEncoder();
  bytes.fill(0, 112, CLUSTER);
  let at = 112;
  const all = [...extensions, ...(format === undefined ? [] : [[0xe279_2aca, encoder.encode(format)] as const])];
  for (const [magic, data] of all) {
    u32(bytes, at, magic);
    u32(bytes, at + 4, data.length);
    bytes.set(data, at + 8);
    at += 8 + Math.ceil(data.length / 8) * 8;
  }
  at += 8;
  if (backing !== undefined) {
    const name = typeof backing === 'string' ? encoder.encode(backing) : backing;
    bytes.set(name, at);
    u64(bytes, 8, at);
    u32(bytes, 16, name.length);
  }
  return bytes;
}

const named = (backing: string | Uint8Array, format?: string) => async () => {
  return rewritten(await sound(), { backing, ...(format === undefined ? {} : { format }) });
};

const ALGORITHMS: LuksAlgorithms = {
  cipher: 'aes',
  cipherKeyBytes: 32,
  mode: 'xts',
  ivGenerator: 'plain64',
  ivHash: undefined,
  hash: 'sha256',
};

/** A LUKS volume as far as its header; nobody has its key. */
export async function luksVolume(
  iterations: number | undefined,
  changed: Partial<LuksAlgorithms> = {},
): Promise<Uint8Array> {
  const algorithms = { ...ALGORITHMS, ...changed };
  const slots = emptySlots(algorithms);
  if (iterations !== undefined) {
    const [first] = slots;
    slots[0] = {
      active: true,
      iterations,
      salt: new Uint8Array(32).fill(1),
      materialOffset: first?.materialOffset ?? 0,
    };
  }
  const payloadOffset = luksHeaderArea(algorithms);
  const header = encodeLuksHeader({
    ...{ algorithms, payloadOffset, digest: new Uint8Array(20), digestSalt: new Uint8Array(32) },
    ...{ digestIterations: 1000, uuid: '00000000-0000-0000-0000-000000000000', slots },
  });
  const bytes = new Uint8Array(payloadOffset + MiB);
  bytes.set(header);
  return bytes;
}

async function withSnapshot(
  change: (files: MemoryFiles) => Promise<void> = async () => undefined,
): Promise<Uint8Array> {
  const files = new MemoryFiles();
  await make(files, IMAGE, { size: MiB }, [[0, 2 * CLUSTER, 7]]);
  {
    await using image = await open(files, IMAGE, { readOnly: false });
    await image.createSnapshot({ name: 'before', date: new Date(Date.UTC(2026, 0, 2)) });
  }
  await change(files);
  return files.bytes(IMAGE);
}

async function rewrite(files: MemoryFiles): Promise<void> {
  await using image = await open(files, IMAGE, { readOnly: false });
  await image.write(0, new Uint8Array(CLUSTER).fill(9));
}

async function withBitmap(): Promise<Uint8Array> {
  const files = new MemoryFiles();
  await make(files, IMAGE, { size: MiB }, [[0, CLUSTER, 7]]);
  {
    await using image = await open(files, IMAGE, { readOnly: false });
    await image.addBitmap({ name: 'backup' });
  }
  return files.bytes(IMAGE);
}

function setRefcount(bytes: Uint8Array, offset: number, value: number): void {
  new DataView(bytes.buffer, bytes.byteOffset).setUint16(REFCOUNTS + (offset / CLUSTER) * 2, value);
}

/** One cluster longer, with content in the last one. */
function longer(bytes: Uint8Array): Uint8Array {
  const end = Math.ceil(bytes.length / CLUSTER) * CLUSTER;
  const grown = new Uint8Array(end + CLUSTER);
  grown.set(bytes);
  grown[end + 100] = 1;
  return grown;
}

/** A cow image of QEMU's whose disk has this size. */
async function cowOf(size: number, fileSize: number): Promise<MemoryStore> {
  const head = goldenBytes('v2-qemu-x86_64-nobacking.cow').slice(0, 1056);
  u64(head, 1040, size);
  const store = new MemoryStore({ name: 'image.cow' });
  await store.write(0, head);
  await store.truncate(fileSize);
  return store;
}

const encode = (text: string): Uint8Array => new TextEncoder().encode(text);

/** One for each id at least. */
export const AUDIT_CASES: readonly AuditCase[] = [
  { id: 'reference.names-file', make: named('base.raw', 'raw') },
  { id: 'reference.outside', make: named('/srv/disks/base.raw', 'raw') },
  { id: 'reference.outside', make: async () => goldenBytes('v2-uml-32.cow') },
  { id: 'reference.parent', make: named('../../base.raw', 'raw') },
  { id: 'reference.parent', make: async () => addCow('sub/../../image.raw', 'base.raw') },
  { id: 'reference.system-path', make: named('/srv/../proc/self/mem', 'raw') },
  { id: 'reference.system-path', make: async () => addCow('/dev/sda', '') },
  {
    id: 'reference.system-path',
    make: async () => rewritten(await sound(), { extensions: [[0x4441_5441, encode('/dev/sda')]] }),
  },
  { id: 'reference.protocol', make: named('nbd://198.51.100.1/x', 'raw') },
  { id: 'reference.protocol', make: named('\\\\server\\share\\x', 'raw') },
  { id: 'reference.json', make: named('json:{"driver":"null-co"}', 'raw') },
  {
    id: 'reference.json',
    make: async () => rewritten(await sound(), { extensions: [[0x4441_5441, encode('json:{}')]] }),
  },
  { id: 'reference.self', make: named(`./${IMAGE}`, 'qcow2') },
  { id: 'reference.self', make: async () => addCow('one.raw', 'one.raw') },
  { id: 'reference.format-missing', make: named('base.raw') },
  { id: 'reference.format-odd', make: named('base.raw', 'quorum') },
  { id: 'reference.not-utf8', make: named(Uint8Array.of(0x61, 0xff, 0x62), 'raw') },
  { id: 'text.control', make: named('base\x1b[2J.raw', 'raw') },
  { id: 'text.control', make: named('base\u202egpj.raw', 'raw') },
  { id: 'size.sparse', make: () => sound(2 * 2 ** 40, 2 * MiB) },
  { id: 'size.absurd', make: () => sound(2 ** 50, 2 * MiB) },
  { id: 'header.invalid', make: damaged((bytes) => u32(bytes, 96, 7)) },
  { id: 'header.invalid', make: async () => addCow('', 'base.raw') },
  { id: 'header.beyond-limit', make: damaged((bytes) => u32(bytes, 36, 0x7fff_ffff)) },
  { id: 'header.unsupported', make: damaged((bytes) => u64(bytes, 72, 2n ** 40n)) },
  { id: 'header.unsupported', make: damaged((bytes) => u32(bytes, 4, 4)), format: 'qcow2' },
  { id: 'header.unknown-features', make: damaged((bytes) => u64(bytes, 80, 2n ** 40n)) },
  { id: 'hidden.slack', make: damaged((bytes) => bytes.fill(1, 0x8000, 0x8001)) },
  {
    id: 'hidden.slack',
    make: async () => (await luksVolume(1_000_000)).fill(1, LUKS_HEADER_BYTES, LUKS_HEADER_BYTES + 1),
  },
  { id: 'hidden.trailing', make: async () => longer(await sound()) },
  { id: 'audit.tables-unread', make: () => cowOf(2 ** 43 + 2 ** 33, 2 ** 31 + 2 ** 30) },
  {
    id: 'audit.content-unread',
    make: async () => {
      const bytes = await luksVolume(1_000_000);
      u32(bytes, 104, (64 * MiB) / 512);
      const store = MemoryStore.from(bytes, { name: 'image.luks' });
      await store.truncate(65 * MiB);
      return store;
    },
  },
  { id: 'encryption.weak-iterations', make: () => luksVolume(1000) },
  { id: 'encryption.slow-iterations', make: () => luksVolume(0xffff_ffff) },
  { id: 'encryption.weak-algorithm', make: () => luksVolume(1_000_000, { mode: 'cbc', ivGenerator: 'plain' }) },
  { id: 'encryption.weak-algorithm', make: () => luksVolume(1_000_000, { hash: 'sha1' }) },
  { id: 'encryption.no-key', make: () => luksVolume(undefined) },
  { id: 'qcow2.dirty', make: damaged((bytes) => u64(bytes, 72, 1)) },
  { id: 'qcow2.corrupt', make: damaged((bytes) => u64(bytes, 72, 2)) },
  {
    id: 'qcow2.unknown-extension',
    make: async () => rewritten(await sound(), { extensions: [[0x1234_5678, encode('hello')]] }),
  },
  {
    id: 'qcow2.header-tail',
    make: damaged((bytes) => {
      bytes.fill(0, 112, CLUSTER);
      u32(bytes, 100, 120);
      u64(bytes, 112, 1);
    }),
  },
  { id: 'qcow2.hidden-name', make: named('base.raw\0/etc/shadow', 'raw') },
  { id: 'qcow2.legacy-encryption', make: damaged((bytes) => u32(bytes, 32, 1)) },
  { id: 'qcow2.table-size', make: damaged((bytes) => u32(bytes, 36, 0x20_0000)) },
  { id: 'qcow2.table-size', make: damaged((bytes) => u32(bytes, 60, 2000)) },
  { id: 'qcow2.invalid-entry', make: damaged((bytes) => u64(bytes, L1, get64(bytes, L1) + 4)) },
  { id: 'qcow2.invalid-entry', make: damaged((bytes, { l2, data }) => u64(bytes, l2, data + 512)) },
  { id: 'qcow2.out-of-file', make: damaged((bytes) => u64(bytes, L1, 2 ** 40)) },
  { id: 'qcow2.out-of-file', make: damaged((bytes) => u64(bytes, 48, 2 ** 40)) },
  { id: 'qcow2.out-of-file', make: damaged((bytes, { l2 }) => u64(bytes, l2, 2 ** 40)) },
  { id: 'qcow2.loop', make: damaged((bytes) => u64(bytes, L1, L1)) },
  { id: 'qcow2.loop', make: damaged((bytes, { l2 }) => u64(bytes, l2, l2)) },
  { id: 'qcow2.loop', make: damaged((bytes) => u64(bytes, CLUSTER, CLUSTER)) },
  { id: 'qcow2.overlap', make: damaged((bytes) => u64(bytes, L1, CLUSTER)) },
  { id: 'qcow2.overlap', make: damaged((bytes) => u64(bytes, 40, 0)) },
  { id: 'qcow2.data-over-metadata', make: damaged((bytes, { l2 }) => u64(bytes, l2, 2n ** 63n + BigInt(REFCOUNTS))) },
  { id: 'qcow2.data-over-metadata', make: damaged((bytes, { l2 }) => u64(bytes, l2, 2n ** 62n)) },
  { id: 'qcow2.shared-table', make: damaged((bytes, { l2 }) => u64(bytes, L1 + 8, l2), 1024 * MiB) },
  { id: 'qcow2.shared-cluster', make: damaged((bytes, { l2, data }) => u64(bytes, l2 + 64, data)) },
  { id: 'qcow2.unprotected-metadata', make: damaged((bytes) => setRefcount(bytes, L1, 0)) },
  {
    id: 'qcow2.expansion',
    make: damaged((bytes, { l2, data }) => {
      u64(bytes, L1 + 8, l2);
      for (let at = 0; at < CLUSTER; at += 8) u64(bytes, l2 + at, data);
    }, 1024 * MiB),
  },
  { id: 'qcow2.snapshot', make: () => withSnapshot() },
  { id: 'qcow2.snapshot-data', make: () => withSnapshot(rewrite) },
  {
    id: 'qcow2.vm-state',
    make: async () => {
      const bytes = await withSnapshot();
      // the extra data of the first snapshot
      u64(bytes, get64(bytes, 64) + 40, 4096);
      return bytes;
    },
  },
  { id: 'qcow2.bitmap', make: withBitmap },
  {
    id: 'qcow2.leaked-content',
    make: damaged((bytes, { l2 }) => u64(bytes, l2, 0)),
  },
  {
    id: 'qcow2.freed-content',
    make: damaged((bytes, { l2, data }) => {
      u64(bytes, l2, 0);
      setRefcount(bytes, data, 0);
    }),
  },
  { id: 'raw.looks-like', make: () => sound(), format: 'raw' },
  {
    id: 'raw.looks-like',
    make: async () => Uint8Array.from([...encode('# Disk DescriptorFile\n'), ...new Uint8Array(4096)]),
  },
  {
    id: 'raw.looks-like',
    make: async () => {
      const bytes = new Uint8Array(4096);
      bytes.set(encode('conectix'), 4096 - 512);
      return bytes;
    },
  },
  { id: 'cow.ambiguous', make: ambiguousCow },
  { id: 'cow.backing-time', make: async () => goldenBytes('v3-fresh.cow') },
];

/** An add-cow image, v9. */
async function addCow(image: string, backing: string): Promise<Uint8Array> {
  const bytes = goldenBytes('addcow-v9.add-cow').slice();
  bytes.fill(0, 12, 2060);
  bytes.set(encode(backing), 12);
  bytes.set(encode(image), 1036);
  return bytes;
}

/** A header that reads as that of another layout as well, whose disk is larger. */
async function ambiguousCow(): Promise<MemoryStore> {
  return cowImage({
    ...{ layout: 'v2-uml-32', size: 4 * GiB + 512, backingName: 'base.img', mtime: 1_000_000_000 },
    ...{ present: [17], data: () => undefined, fileSize: 1.5 * GiB },
  });
}
