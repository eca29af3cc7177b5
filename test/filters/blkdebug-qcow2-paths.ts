/** The paths of qcow2 that faults are tried on, each with the events that it raises. Data, and what makes the images. */

import type { MappedNode } from '../../src/core/mapped-node.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { createInMemory } from '../formats/qcow2/support.ts';
import { busyImage } from '../support/qcow2-cuts.ts';
import type { PathUnderTest } from '../support/qcow2-faults.ts';
import { openDisk, pattern, readAll } from '../support/qcow2-parts.ts';
import { createQcow2Bytes, type Qcow2Variant, qcow2UnderTest } from '../support/qcow2-under-test.ts';

const KiB = 1024;
const SIZE = 40 * KiB;
const BACKING = pattern(50 * KiB, 8);

type Prepare = (node: MappedNode) => Promise<unknown>;

/** Made once; an image with a snapshot and what `prepare` does. */
function image(variant: Qcow2Variant, prepare?: Prepare, size = SIZE, hasBacking = false): PathUnderTest['image'] {
  let made: Promise<Uint8Array> | undefined;
  const make = async (): Promise<Uint8Array> => {
    const file = await createQcow2Bytes(size, variant, hasBacking);
    if (prepare !== undefined) {
      const { node } = await openDisk(file, hasBacking ? { backing: MemoryStore.from(BACKING) } : {});
      await prepare(node);
      await node.close();
    }
    return file.bytes();
  };
  return async () => {
    made ??= make();
    return { file: await made };
  };
}

function busy(variant: Qcow2Variant, snapshots: boolean, hasBacking = false): PathUnderTest['image'] {
  let made: Promise<Uint8Array> | undefined;
  return async () => {
    made ??= busyImage({ size: SIZE, variant, snapshots, ...(hasBacking ? { backing: BACKING } : {}) });
    return { file: await made };
  };
}

const withDataFile: PathUnderTest['image'] = async () => {
  const { file, data } = await createInMemory(SIZE, { clusterSize: 512, dataFile: 'data' });
  return { file: file.bytes(), data: data?.bytes() };
};

/** All but a few clusters of those that the refcount table can count are taken. */
const full: PathUnderTest['image'] = (() => {
  let made: Promise<readonly Uint8Array[]> | undefined;
  return async () => {
    made ??= Promise.resolve(qcow2UnderTest({ spareClusters: 3 }).create(SIZE, { hasBacking: false }));
    return { file: (await made)[0] as Uint8Array };
  };
})();

const filled: Prepare = (node) => node.write(0, pattern(12 * KiB)) ?? Promise.resolve();
const frozen: Prepare = async (node) => {
  await filled(node);
  await node.createSnapshot({ name: 'first', dateSeconds: 1 });
};
const packed: Prepare = async (node) => {
  await node.write(0, pattern(4 * KiB), { compressed: true });
};

const write =
  (offset: number, length: number, seed = 5) =>
  (node: MappedNode) =>
    node.write(offset, pattern(length, seed)) as Promise<void>;

/** Reads, and compares with the same again. */
const read = (offset: number, length: number) => async (node: MappedNode) => {
  const found = await readAll(node, offset, length);
  if (found.length !== length) throw new Error('short');
};

export const PATHS: Readonly<Record<string, PathUnderTest>> = {
  'reading data': {
    image: image({}, filled),
    act: read(700, 3000),
    events: ['l2_load', 'read_aio', 'flush_to_os', 'flush_to_disk'],
  },
  'reading the backing file': {
    image: image({}, undefined, SIZE, true),
    backing: BACKING,
    act: read(0, 3000),
    events: ['read_backing_aio', 'flush_to_os', 'flush_to_disk'],
    asksNothing: true,
  },
  'reading compressed clusters': {
    image: image({}, packed),
    act: read(100, 3000),
    events: ['l2_load', 'read_compressed', 'flush_to_os', 'flush_to_disk'],
  },
  'writing to new clusters': {
    image: image({}),
    act: write(1024, 3072),
    events: [
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l2_alloc_write',
      'l2_load',
      'write_aio',
      'flush_to_os',
      'refblock_update_part',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
  },
  'writing parts of clusters over a backing file': {
    image: image({}, undefined, SIZE, true),
    backing: BACKING,
    act: write(700, 3000),
    events: [
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l2_alloc_write',
      'l2_load',
      'cow_read',
      'read_backing_aio',
      'write_aio',
      'cow_write',
      'flush_to_os',
      'refblock_update_part',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
  },
  'writing in place': {
    image: image({}, filled),
    act: write(700, 3000),
    events: ['l2_load', 'write_aio', 'reftable_load', 'flush_to_os', 'flush_to_disk', 'pwritev', 'pwritev_done'],
  },
  'writing to clusters shared with a snapshot': {
    image: image({}, frozen),
    act: write(700, 3000),
    events: [
      'l2_load',
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l2_alloc_cow_read',
      'l2_alloc_write',
      'cow_read',
      'read_aio',
      'write_aio',
      'cow_write',
      'flush_to_os',
      'refblock_update_part',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'cluster_free',
      'pwritev',
      'pwritev_done',
    ],
  },
  'writing over compressed clusters': {
    image: image({}, packed),
    act: write(700, 1000),
    events: [
      'l2_load',
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'cow_read',
      'read_compressed',
      'write_aio',
      'cow_write',
      'flush_to_os',
      'refblock_update_part',
      'l2_update',
      'flush_to_disk',
      'cluster_free',
      'pwritev',
      'pwritev_done',
    ],
  },
  'writing compressed clusters': {
    image: image({}),
    act: (node) => node.write(1024, pattern(2048, 5), { compressed: true }),
    events: [
      'cluster_alloc_bytes',
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'write_compressed',
      'l2_alloc_write',
      'l2_load',
      'l2_update_compressed',
      'flush_to_os',
      'refblock_update_part',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
  },
  'writing compressed over shared clusters': {
    image: image({}, frozen),
    act: (node) => node.write(1024, pattern(2048, 5), { compressed: true }),
    events: [
      'cluster_alloc_bytes',
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'write_compressed',
      'l2_alloc_cow_read',
      'l2_load',
      'l2_alloc_write',
      'l2_update_compressed',
      'flush_to_os',
      'refblock_update_part',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'cluster_free',
      'pwritev',
      'pwritev_done',
    ],
  },
  'zeroing clusters': {
    image: image({}, filled),
    act: (node) => node.writeZeroes(700, 3000),
    events: [
      'l2_load',
      'write_aio',
      'reftable_load',
      'flush_to_os',
      'l2_update',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
  },
  'zeroing and giving up clusters': {
    image: image({}, filled),
    act: (node) => node.writeZeroes(512, 3072, { unmap: true }),
    events: [
      'l2_load',
      'flush_to_os',
      'reftable_load',
      'l2_update',
      'flush_to_disk',
      'cluster_free',
      'refblock_load',
      'refblock_update_part',
      'pwritev',
      'pwritev_done',
    ],
  },
  'discarding clusters': {
    image: image({}, filled),
    act: (node) => node.discard(0, 8 * KiB),
    events: [
      'l2_load',
      'flush_to_os',
      'reftable_load',
      'l2_update',
      'flush_to_disk',
      'cluster_free',
      'refblock_load',
      'refblock_update_part',
      'pwritev',
      'pwritev_done',
    ],
  },
  'more refcount blocks': {
    image: image({ refcountBits: 64 }),
    act: write(0, SIZE),
    events: [
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l2_alloc_write',
      'l2_load',
      'refblock_alloc',
      'refblock_alloc_write',
      'refblock_alloc_hookup',
      'write_aio',
      'flush_to_os',
      'refblock_update_part',
      'reftable_update',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
  },
  'a larger refcount table': {
    image: full,
    act: write(0, 2048),
    events: [
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l2_alloc_write',
      'l2_load',
      'reftable_grow',
      'refblock_alloc_write_blocks',
      'refblock_update_part',
      'refblock_alloc_write_table',
      'refblock_alloc_switch_table',
      'write_aio',
      'flush_to_os',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
    mayCondemn: true,
  },
  'a larger L1 table': {
    image: image({}, filled),
    act: (node) => node.resize(300 * KiB),
    events: [
      'l1_grow_alloc_table',
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l1_grow_write_table',
      'refblock_update_part',
      'l1_grow_activate_table',
      'cluster_free',
      'flush_to_os',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
    mayCondemn: true,
  },
  'growing with space': {
    image: image({}, filled),
    act: (node) => node.resize(60 * KiB, 'full'),
    events: [
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l2_alloc_write',
      'l2_load',
      'refblock_update_part',
      'l2_update',
      'l1_update',
      'flush_to_os',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
    mayCondemn: true,
  },
  'growing with tables': {
    image: image({}, filled),
    act: (node) => node.resize(60 * KiB, 'metadata'),
    events: [
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l2_alloc_write',
      'l2_load',
      'refblock_update_part',
      'l2_update',
      'l1_update',
      'flush_to_os',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
    mayCondemn: true,
  },
  shrinking: {
    image: busy({}, false),
    act: (node) => node.resize(5 * KiB),
    events: [
      'flush_to_disk',
      'l2_load',
      'l1_shrink_write_table',
      'reftable_load',
      'l2_update',
      'l1_shrink_free_l2_clusters',
      'cluster_free',
      'refblock_load',
      'refblock_update_part',
      'flush_to_os',
      'pwritev',
      'pwritev_done',
    ],
    mayCondemn: true,
    hints: ['truncate'],
  },
  'making a snapshot': {
    image: image({}, frozen),
    act: (node) => node.createSnapshot({ name: 'second', dateSeconds: 2 }),
    events: [
      'reftable_load',
      'cluster_alloc',
      'refblock_load',
      'refblock_update_part',
      'flush_to_os',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
    mayCondemn: true,
  },
  'applying a snapshot': {
    image: busy({}, true),
    act: (node) => node.applySnapshot('first'),
    mayCondemn: true,
    events: [
      'reftable_load',
      'cluster_alloc',
      'refblock_load',
      'refblock_update_part',
      'flush_to_os',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
  },
  'deleting a snapshot': {
    image: busy({}, true),
    act: (node) => node.deleteSnapshot('first'),
    events: [
      'reftable_load',
      'cluster_alloc',
      'refblock_load',
      'refblock_update_part',
      'flush_to_os',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
    mayCondemn: true,
  },
  'saving the state of a machine': {
    image: image({}, filled),
    act: (node) => node.writeVmState(0, pattern(3000, 4)),
    events: [
      'vmstate_save',
      'l1_grow_alloc_table',
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l1_grow_write_table',
      'refblock_update_part',
      'l1_grow_activate_table',
      'cluster_free',
      'l2_alloc_write',
      'l2_load',
      'write_aio',
      'flush_to_os',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
    mayCondemn: true,
  },
  'loading the state of a machine': {
    image: image({}, (node) => node.writeVmState(0, pattern(3000, 4))),
    act: (node) => node.readVmState(0, new Uint8Array(3000)),
    events: ['vmstate_load', 'l2_load', 'read_aio', 'flush_to_os', 'flush_to_disk'],
  },
  'amending to version 2': {
    image: busy({}, true),
    act: (node) => node.amend({ compat: 'v2' }),
    events: [
      'flush_to_disk',
      'reftable_load',
      'refblock_load',
      'refblock_update_part',
      'flush_to_os',
      'pwritev',
      'pwritev_done',
    ],
  },
  'amending to version 3': {
    image: busy({ compat: 'v2' }, true),
    act: (node) => node.amend({ compat: 'v3' }),
    events: ['flush_to_os', 'flush_to_disk', 'pwritev', 'pwritev_done'],
  },
  'amending the width of refcounts': {
    image: busy({}, true),
    act: (node) => node.amend({ refcountBits: 64 }),
    mayCondemn: true,
    events: [
      'flush_to_disk',
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'refblock_update_part',
      'flush_to_os',
      'pwritev',
      'pwritev_done',
    ],
  },
  'storing bitmaps': {
    image: image({}, filled),
    act: async (node) => {
      const there = await node.format.bitmaps?.list();
      if (there?.length === 0) await node.changeBitmaps((bitmaps) => bitmaps.add({ name: 'b', granularity: 512 }));
      await node.write(700, pattern(1000, 6));
    },
    events: [
      'l2_load',
      'write_aio',
      'reftable_load',
      'flush_to_os',
      'flush_to_disk',
      'cluster_alloc',
      'refblock_load',
      'refblock_update_part',
      'pwritev',
      'pwritev_done',
    ],
  },
  'writing with lazy refcounts': {
    image: image({ lazyRefcounts: true }),
    act: write(700, 3000),
    events: [
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l2_alloc_write',
      'l2_load',
      'write_aio',
      'flush_to_os',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'refblock_update_part',
      'pwritev',
      'pwritev_done',
    ],
    lazy: true,
  },
  'writing with subclusters': {
    image: image({ extendedL2: true }, undefined, 64 * KiB),
    act: write(700, 3000),
    events: [
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l2_alloc_write',
      'l2_load',
      'cow_read',
      'write_aio',
      'cow_write',
      'flush_to_os',
      'refblock_update_part',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
  },
  'zeroing subclusters': {
    image: image({ extendedL2: true }, (node) => node.write(0, pattern(20 * KiB)) as Promise<void>, 64 * KiB),
    act: (node) => node.writeZeroes(512, 3072),
    events: ['l2_load', 'flush_to_os', 'reftable_load', 'l2_update', 'flush_to_disk', 'pwritev', 'pwritev_done'],
  },
  'writing with a data file': {
    image: withDataFile,
    act: write(700, 3000),
    events: [
      'cluster_alloc',
      'reftable_load',
      'refblock_load',
      'l2_alloc_write',
      'l2_load',
      'cow_read',
      'write_aio',
      'cow_write',
      'flush_to_os',
      'refblock_update_part',
      'l2_update',
      'l1_update',
      'flush_to_disk',
      'pwritev',
      'pwritev_done',
    ],
  },
  'emptying at once': {
    image: busy({}, false, true),
    backing: BACKING,
    act: (node) => node.makeEmpty(),
    events: [
      'flush_to_disk',
      'empty_image_prepare',
      'reftable_update',
      'l1_update',
      'flush_to_os',
      'pwritev',
      'pwritev_done',
      'pwritev_zero',
    ],
    mayCondemn: true,
  },
  'emptying cluster by cluster': {
    image: busy({}, true, true),
    backing: BACKING,
    act: (node) => node.makeEmpty(),
    events: [
      'l2_load',
      'flush_to_os',
      'reftable_load',
      'l2_update',
      'flush_to_disk',
      'cluster_free',
      'refblock_load',
      'refblock_update_part',
      'pwritev',
      'pwritev_done',
    ],
  },
  'changing the backing file': {
    image: image({}, filled, SIZE, true),
    backing: BACKING,
    act: (node) => node.changeBacking({ name: 'another', format: 'raw' }),
    events: ['flush_to_os', 'flush_to_disk', 'pwritev', 'pwritev_done'],
  },
};
