/** The file fails in the middle of amending, resizing or emptying: the change fails, the disk holds what it held or what it was to hold, and the
 *  image goes on, with leaks at most. */
import { describe, expect, it } from 'vitest';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { FaultStore } from '../../../src/testing/fault-store.ts';
import { busyImage } from '../../support/qcow2-cuts.ts';
import { pattern, readAll } from '../../support/qcow2-parts.ts';
import { checkQcow2, openQcow2, type Qcow2Variant } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const SIZE = 40 * KiB;
const BACKING = pattern(60 * KiB, 8);

interface Case {
  readonly variant: Qcow2Variant;
  readonly snapshots?: boolean;
  make(node: MappedNode): Promise<unknown>;
}

const CASES: Readonly<Record<string, Case>> = {
  'version 2 becomes 3': { variant: { compat: 'v2' }, make: (node) => node.amend({ compat: 'v3' }) },
  'version 3 becomes 2': { variant: {}, snapshots: true, make: (node) => node.amend({ compat: 'v2' }) },
  'refcounts change': { variant: {}, snapshots: true, make: (node) => node.amend({ refcountBits: 64 }) },
  'lazy refcounts go': { variant: { lazyRefcounts: true }, make: (node) => node.amend({ lazyRefcounts: false }) },
  'it grows': { variant: {}, make: (node) => node.resize(90 * KiB) },
  'it grows with space': { variant: {}, make: (node) => node.resize(50 * KiB, 'full') },
  'it shrinks': { variant: {}, snapshots: true, make: (node) => node.resize(9 * KiB) },
  'it is emptied': { variant: {}, make: (node) => node.makeEmpty() },
};

describe.each(['write', 'flush', 'truncate', 'read', 'zeroes'] as const)('a failing %s', (on) => {
  it.each(Object.entries(CASES))('while %s costs nothing but space', async (_, { variant, snapshots, make }) => {
    const before = await busyImage({ size: SIZE, variant, backing: BACKING, snapshots: snapshots === true });
    const stores = () => ({ file: MemoryStore.from(before, { pageSize: 512 }), backing: MemoryStore.from(BACKING) });
    const whole = stores();
    const undisturbed = await openQcow2(whole.file, { backing: whole.backing });
    const old = await readAll(undisturbed);
    await make(undisturbed);
    const fresh = await readAll(undisturbed);
    await undisturbed.close();
    let failures = 0;
    for (let nth = 1, failed = true; failed; nth += nth < 12 ? 1 : 7) {
      failed = false;
      const { file, backing } = stores();
      const store = new FaultStore(file);
      const node = await openQcow2(store, { backing });
      const fault = store.fail({ on, nth, late: nth % 2 === 0 });
      await make(node).catch(() => {
        failed = true;
      });
      failed ||= fault.hits > 0;
      if (failed) failures++;
      fault.cancel();
      const found = await readAll(node).catch(() => undefined);
      // Where nobody knows which header the file has, no request is served.
      if (found !== undefined) {
        const wanted = found.length === fresh.length && Buffer.compare(found, fresh) === 0 ? fresh : old;
        expect(Buffer.compare(found, wanted), `${on} ${nth}`).toBe(0);
        await node.write(0, pattern(3000, 9));
        const changed = Uint8Array.from(wanted);
        changed.set(pattern(3000, 9).subarray(0, changed.length));
        expect(Buffer.compare(await readAll(node), changed), `${on} ${nth}`).toBe(0);
      }
      await node.close();
      const { lines, checkErrors } = await checkQcow2(MemoryStore.from(file.bytes()));
      expect({ lines, checkErrors }, `${on} ${nth}`).toEqual({ lines: [], checkErrors: 0 });
    }
    if (on === 'write') expect(failures).toBeGreaterThan(1);
  });
});
