/** Changes of snapshots over files that fail: whatever fails, the image is as it was, or it is as it was to become and says so. */
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { FaultStore } from '../../../src/testing/fault-store.ts';
import { pattern, readAll } from '../../support/qcow2-parts.ts';
import { checkQcow2, createQcow2Bytes, openQcow2 } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const SIZE = 40 * KiB;

async function image(): Promise<Uint8Array> {
  const file = await createQcow2Bytes(SIZE, {}, false);
  const node = await openQcow2(file);
  await node.write(0, pattern(20 * KiB));
  await node.createSnapshot({ name: 'first', dateSeconds: 1 });
  await node.write(4 * KiB, pattern(9 * KiB, 2));
  await node.createSnapshot({ name: 'second', dateSeconds: 2 });
  await node.write(0, pattern(2 * KiB, 3));
  await node.close();
  return file.bytes();
}

const CHANGES: Readonly<Record<string, (node: MappedNode) => Promise<unknown>>> = {
  'making one': (node) => node.createSnapshot({ name: 'third', dateSeconds: 3 }),
  'applying one': (node) => node.applySnapshot('first'),
  'deleting one': (node) => node.deleteSnapshot('first'),
};

interface Seen {
  readonly disk: Uint8Array;
  readonly names: readonly string[];
}

async function see(node: MappedNode): Promise<Seen> {
  return { disk: await readAll(node), names: (node.format.snapshots?.list() ?? []).map(({ name }) => name) };
}

async function seeFile(bytes: Uint8Array): Promise<Seen> {
  return see(await openQcow2(MemoryStore.from(bytes), { readOnly: true }));
}

describe.each(Object.entries(CHANGES))('%s', (_, change) => {
  const kinds = [
    ['read', {}],
    ['write', {}],
    ['write', { late: true, carriedOut: true }],
    ['write', { late: true, partial: 100 }],
    ['flush', {}],
    ['flush', { late: true, carriedOut: true }],
  ] as const;

  it.each(kinds)('fails with any %s %o, leaves everything as it was, and succeeds afterwards', async (on, how) => {
    const bytes = await image();
    const before = await seeFile(bytes);
    let failures = 0;
    for (let nth = 1; ; nth++) {
      const memory = MemoryStore.from(bytes, { pageSize: 512 });
      const store = new FaultStore(memory);
      const node = await openQcow2(store);
      const fault = store.fail({ on, nth, ...how });
      let failed = false;
      try {
        await change(node);
      } catch (error) {
        failed = true;
        expect(error).toMatchObject({ code: 'IO' });
      }
      if (fault.hits === 0) {
        expect(failed).toBe(false);
        break;
      }
      store.heal();
      if (failed) {
        failures++;
        expect(await see(node), `${on} ${nth}`).toEqual(before);
        await node.write(30 * KiB, pattern(3 * KiB, 7));
        await change(node);
      }
      await node.close();
      const { lines } = await checkQcow2(MemoryStore.from(memory.bytes()));
      expect(lines, `${on} ${nth}`).toEqual([]);
    }
    expect(failures).toBeGreaterThan(0);
  });

  it('whose end nobody can know makes the node unusable, and leaves an image that is right', async () => {
    const bytes = await image();
    const before = await seeFile(bytes);
    const clean = MemoryStore.from(bytes, { pageSize: 512 });
    const undisturbed = await openQcow2(clean);
    await change(undisturbed);
    const after = await see(undisturbed);
    for (const carriedOut of [false, true]) {
      const memory = MemoryStore.from(bytes, { pageSize: 512 });
      const store = new FaultStore(memory);
      const node = await openQcow2(store);
      // The switch, and what puts it back.
      store.fail({ on: 'write', offset: 0, length: 512, always: true, carriedOut });
      await expect(change(node)).rejects.toMatchObject({ code: 'IO' });
      store.heal();
      expect(() => node.read(0, new Uint8Array(1))).toThrow(/fatal/);
      await node.close();
      const content = memory.bytes();
      expect((await checkQcow2(MemoryStore.from(content))).lines).toEqual([]);
      const found = await seeFile(content);
      expect([before.disk, after.disk]).toContainEqual(found.disk);
      // Carried out both times: put back.
      expect(found).toEqual(before);
    }
  });

  it('can be interrupted before its end, and has then done nothing', async () => {
    const bytes = await image();
    const before = await seeFile(bytes);
    const memory = MemoryStore.from(bytes, { pageSize: 512 });
    const node = await openQcow2(memory);
    const signal = AbortSignal.abort();
    await expect(node.createSnapshot({ name: 'x', dateSeconds: 1 }, { signal })).rejects.toMatchObject({
      code: 'ABORTED',
    });
    await expect(node.applySnapshot('first', { signal })).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(node.deleteSnapshot('first', { signal })).rejects.toMatchObject({ code: 'ABORTED' });
    expect(await see(node)).toEqual(before);
    await node.close();
    const { lines, leaks } = await checkQcow2(MemoryStore.from(memory.bytes()));
    expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
  });
});

describe('an interruption in the middle of the tables', () => {
  it('gives back what was reserved', async () => {
    // Every look at the clock finds that it is time for a turn of the event loop.
    let now = 0;
    const clock = vi.spyOn(performance, 'now').mockImplementation(() => (now += 1000));
    onTestFinished(() => clock.mockRestore());
    const file = await createQcow2Bytes(256 * KiB, {}, false);
    const node = await openQcow2(file);
    await node.write(0, pattern(200 * KiB));
    const abort = new AbortController();
    const phases = new Set<string>();
    const made = node.createSnapshot(
      { name: 'a', dateSeconds: 1 },
      {
        signal: abort.signal,
        onProgress: ({ phase, done, total }) => {
          phases.add(phase);
          expect(done).toBeLessThanOrEqual(total);
          abort.abort();
        },
      },
    );
    await expect(made).rejects.toMatchObject({ code: 'ABORTED' });
    expect([...phases]).toEqual(['tables']);
    expect(node.format.snapshots?.list()).toEqual([]);
    expect(await readAll(node, 0, 200 * KiB)).toEqual(pattern(200 * KiB));
    await node.close();
    const { lines, leaks } = await checkQcow2(MemoryStore.from(file.bytes()));
    expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
  });
});
