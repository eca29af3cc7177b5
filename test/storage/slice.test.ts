import { describe, expect, it } from 'vitest';
import { ExtentList } from '../../src/core/extent.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { SliceStore } from '../../src/storage/slice.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';

const around = (): MemoryStore =>
  MemoryStore.from(new Uint8Array(65_536).fill(0xee), { pageSize: 4096, name: 'whole' });

describe('SliceStore', () => {
  it('shifts requests and touches nothing outside its window', async () => {
    const whole = around();
    const slice = new SliceStore(whole, { offset: 8192, size: 8192 });
    await slice.write(0, new Uint8Array(8192).fill(1));
    await slice.writeZeroes(4096, 4096);
    const bytes = whole.bytes();
    expect([bytes[8191], bytes[8192], bytes[12_287], bytes[12_288], bytes[16_383], bytes[16_384]]).toEqual([
      0xee, 1, 1, 0, 0, 0xee,
    ]);
  });

  it('shows zeros past its end, not what the store holds there', async () => {
    const slice = new SliceStore(around(), { offset: 0, size: 4096 });
    const into = new Uint8Array(4).fill(9);
    await slice.read(4094, into);
    expect([...into]).toEqual([0xee, 0xee, 0, 0]);
    await slice.read(8000, into);
    expect([...into]).toEqual([0, 0, 0, 0]);
  });

  it('tells extents in its own offsets, host offsets in those of the store', async () => {
    const whole = around();
    await whole.writeZeroes(8192, 4096);
    for (const store of [whole, new LateStore({ seed: 1 }, whole)]) {
      const slice = new SliceStore(store, { offset: 4096, size: 12_288 });
      const list = new ExtentList();
      list.reset(0);
      await slice.extents(0, 20_000, list);
      expect([...list].map(({ start, length, data, hostOffset }) => [start, length, data, hostOffset])).toEqual([
        [0, 4096, true, 4096],
        [4096, 4096, false, 8192],
        [8192, 4096, true, 12_288],
        [12_288, 7712, false, undefined],
      ]);
    }
  });

  it('grows with the store when it has no size of its own, and not otherwise', async () => {
    const whole = around();
    const open = new SliceStore(whole, { offset: 60_000 });
    expect(open.size).toBe(5536);
    await open.write(6000, Uint8Array.of(1));
    expect([open.size, whole.size]).toEqual([6001, 66_001]);
    await open.truncate(10);
    expect(whole.size).toBe(60_010);
    const fixed = new SliceStore(whole, { offset: 0, size: 512 });
    expect(fixed.supports.truncate).toBe(false);
    expect(() => fixed.truncate(1024)).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }));
  });

  it('refuses windows outside the store and against its alignment', async () => {
    const whole = around();
    for (const window of [{ offset: 65_537 }, { offset: -1 }, { offset: 0, size: 65_537 }, { offset: 0, size: -1 }]) {
      expect(() => new SliceStore(whole, window)).toThrow(
        expect.objectContaining({ code: 'OUT_OF_RANGE', reason: 'slice.range' }),
      );
    }
    const sectors = new MemoryStore({ size: 8192, requestAlign: 512 });
    expect(() => new SliceStore(sectors, { offset: 100 })).toThrow(expect.objectContaining({ reason: 'slice.align' }));
    expect(() => new SliceStore(sectors, { offset: 512, size: 700 })).toThrow(
      expect.objectContaining({ reason: 'slice.align' }),
    );
  });

  it('closes the store behind it, unless told to leave it open', async () => {
    const whole = around();
    await new SliceStore(whole, { offset: 0, keepOpen: true }).close();
    expect(whole.closed).toBe(false);
    await new SliceStore(whole, { offset: 0 }).close();
    expect(whole.closed).toBe(true);
  });

  it('is a node with the store as its file child, and passes events and flushes on', async () => {
    const whole = around();
    const faulty = new FaultStore(whole, [{ on: 'event', event: 'l2_load' }, { on: 'flush' }]);
    const slice = new SliceStore(faulty, { offset: 0 });
    expect(slice).toMatchObject({
      name: 'whole',
      driver: 'slice',
      children: [{ role: 'file', name: 'file', node: faulty }],
    });
    expect(() => slice.event?.('l2_load')).toThrow(expect.objectContaining({ code: 'IO' }));
    expect(() => slice.flush()).toThrow(expect.objectContaining({ code: 'IO' }));
  });

  it("does not take its store's identity and space for its own", async () => {
    const slice = new SliceStore(around(), { offset: 0, size: 512 });
    expect(await slice.status?.()).toEqual({});
  });
});
