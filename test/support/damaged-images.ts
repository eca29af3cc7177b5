/** Images to be damaged: how guests fill disks, and what an image was like some time before. */
import type { MappedNode } from '../../src/core/mapped-node.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { below } from '../../src/testing/random.ts';
import { newDisk, openDisk } from './qcow2-parts.ts';
import type { Qcow2Variant } from './qcow2-under-test.ts';

export interface Built {
  readonly file: MemoryStore;
  /** The same image some time before. */
  readonly older: MemoryStore;
  readonly backing?: BlockNode;
}

type Fill = (node: MappedNode, random: () => number, part: 'first' | 'rest') => Promise<void>;

/** Every cluster says where it belongs and when it was written. */
export function stamp(at: number, length: number, generation: number): Uint8Array {
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i + 16 <= length; i += 512) {
    view.setFloat64(i, at + i);
    view.setUint32(i + 8, generation);
    view.setUint32(i + 12, 0x7465_7374);
  }
  return bytes;
}

async function write(node: MappedNode, at: number, length: number, generation: number): Promise<void> {
  await node.write(at, stamp(at, Math.min(length, node.size - at), generation));
}

const sequential: Fill = async (node, _random, part) => {
  const half = Math.floor(node.size / 2 / 65536) * 65536;
  for (let at = part === 'first' ? 0 : half; at < (part === 'first' ? half : node.size); at += 65536) {
    await write(node, at, 65536, 1);
  }
};

/** From front to back, with holes. */
const holes: Fill = async (node, random, part) => {
  const half = Math.floor(node.size / 2 / 65536) * 65536;
  const unit = node.format.unit;
  for (let at = part === 'first' ? 0 : half; at < (part === 'first' ? half : node.size); ) {
    const length = unit * (1 + below(random, 12));
    if (below(random, 3) > 0) await write(node, at, length, 1);
    at += length;
  }
};

/** Here and there, again and again, with discards and zeros. */
const random: Fill = async (node, random_, part) => {
  const unit = node.format.unit;
  const units = Math.floor(node.size / unit);
  for (let i = 0; i < 1200; i++) {
    const at = below(random_, units) * unit;
    const length = Math.min(node.size - at, unit * (1 + below(random_, 12)));
    const what = below(random_, 10);
    if (what === 0) await node.discard(at, length);
    else if (what === 1) await node.writeZeroes(at, length);
    else await write(node, at, length, part === 'first' ? i : 10_000 + i);
  }
};

const snapshots: Fill = async (node, random_, part) => {
  const unit = node.format.unit;
  if (part === 'first') {
    await holes(node, random_, 'first');
    await holes(node, random_, 'rest');
    await node.createSnapshot({ name: 'one', dateSeconds: 1 });
    return;
  }
  for (const name of ['two', 'three']) {
    for (let i = 0; i < 250; i++) {
      const at = below(random_, Math.floor(node.size / unit)) * unit;
      await write(node, at, Math.min(node.size - at, unit * (1 + below(random_, 6))), 50 + i);
    }
    await node.createSnapshot({ name, dateSeconds: 2 });
  }
  for (let i = 0; i < 100; i++) {
    const at = below(random_, Math.floor(node.size / unit)) * unit;
    await write(node, at, Math.min(node.size - at, unit), 999);
  }
};

const compressed: Fill = async (node, random_, part) => {
  const unit = node.format.unit;
  const units = Math.floor(node.size / unit);
  const half = Math.floor(units / 2);
  for (let i = part === 'first' ? 0 : half; i < (part === 'first' ? half : units); i++) {
    if (below(random_, 8) === 0) continue;
    const bytes = stamp(i * unit, unit, 1);
    for (let j = 0; j < 40; j++) bytes[16 + below(random_, unit - 16)] = below(random_, 256);
    await node.write(i * unit, bytes, { compressed: true });
  }
};

/** A few clusters in each of many tables, in order. */
const thin: Fill = async (node, random_, part) => {
  const { unit } = node.format;
  const step = (unit / 16) * unit;
  const half = Math.floor(node.size / 2 / step) * step;
  for (let at = part === 'first' ? 0 : half; at < (part === 'first' ? half : node.size); at += step) {
    for (let i = 0; i < 4; i++) {
      const inside = below(random_, Math.floor(step / 2 / 512)) * 512;
      if (at + inside + 40_960 <= node.size) await write(node, at + inside, 512 * (1 + below(random_, 80)), i);
    }
  }
};

export interface Recipe {
  readonly name: string;
  readonly size: number;
  readonly variant: Qcow2Variant;
  readonly fill: Fill;
  readonly backing?: boolean;
  /** Its tables were not made in the order of the disk: without its L1 table nothing tells where they belong. */
  readonly unordered?: boolean;
}

const MiB = 1024 * 1024;
/** Each has more than 150 metadata clusters. */
export const RECIPES: readonly Recipe[] = [
  { name: 'filled from front to back', size: 6 * MiB, variant: { clusterSize: 512 }, fill: sequential },
  { name: 'filled in order, with holes', size: 20 * MiB, variant: { clusterSize: 1024 }, fill: holes },
  { name: 'an overlay', size: 6 * MiB, variant: { clusterSize: 512 }, fill: holes, backing: true },
  { name: 'version 2', size: 20 * MiB, variant: { clusterSize: 1024, compat: 'v2' }, fill: holes },
  { name: 'snapshots', size: 5 * MiB, variant: { clusterSize: 512 }, fill: snapshots },
  { name: 'random writes', size: 6 * MiB, variant: { clusterSize: 512 }, fill: random, unordered: true },
  { name: 'compressed', size: 4 * MiB, variant: { clusterSize: 512 }, fill: compressed },
  { name: 'refcounts of one byte', size: 6 * MiB, variant: { clusterSize: 512, refcountBits: 8 }, fill: holes },
  { name: 'refcounts of 64 bits', size: 6 * MiB, variant: { clusterSize: 512, refcountBits: 64 }, fill: holes },
  { name: 'extended L2', size: 2560 * MiB, variant: { extendedL2: true }, fill: thin },
];

export async function build(recipe: Recipe, random_: () => number): Promise<Built> {
  const { size, variant, fill } = recipe;
  // Closing an image closes its backing file.
  const base = recipe.backing === true ? stamp(0, size, 7) : undefined;
  const below_ = () => (base === undefined ? {} : { backing: MemoryStore.from(base) });
  const { file, node } = await newDisk({ size, ...variant, ...below_() });
  await fill(node, random_, 'first');
  await node.close();
  const older = MemoryStore.from(file.bytes());
  const again = MemoryStore.from(file.bytes());
  const opened = await openDisk(again, below_());
  await fill(opened.node, random_, 'rest');
  await opened.node.close();
  const whole = MemoryStore.from(again.bytes());
  return { file: whole, older, ...below_() };
}
