import { describe, expect, it } from 'vitest';
import { resolveOptions } from '../../src/base/options.ts';
import { NullStore, nullAio, nullCo } from '../../src/storage/null-store.ts';
import { bytesOf, FakeClock, failureOf, filled, settled, statusText } from '../filters/support.ts';

describe('a null store', () => {
  it('keeps nothing, and leaves buffers as they are', async () => {
    const store = new NullStore();
    expect(store.size).toBe(2 ** 30);
    await store.write(0, filled(7, 512));
    const buffer = filled(0xab, 512);
    await store.read(0, buffer);
    expect(buffer).toEqual(filled(0xab, 512));
    expect(await statusText(store)).toBe('no unknown 0+1073741824');
    expect(await store.status()).toEqual({ allocatedBytes: 0 });
  });

  it('reads as zeros where that is asked for, and past its end always', async () => {
    const store = new NullStore({ readZeroes: true, size: 1000 });
    expect(await bytesOf(store)).toEqual(new Uint8Array(1000));
    expect(await statusText(store)).toBe('zero 0+1000');
    const bare = new NullStore({ size: 1000 });
    const buffer = filled(1, 30);
    await bare.read(990, buffer);
    expect(buffer).toEqual(Uint8Array.from([...filled(1, 10), ...filled(0, 20)]));
    expect(await failureOf(() => bare.write(990, filled(1, 30)))).toMatchObject({ code: 'OUT_OF_RANGE' });
    expect(await failureOf(() => bare.truncate(2000))).toMatchObject({ code: 'UNSUPPORTED' });
  });

  it('takes its time, and gives up when it is told to', async () => {
    const clock = new FakeClock();
    const store = new NullStore({ latencyNs: 2_000_000, clock });
    let done = 0;
    for (const pending of [store.read(0, filled(0, 1)), store.write(0, filled(0, 1)), store.flush()]) {
      void Promise.resolve(pending).then(() => done++);
    }
    await clock.pass(1.9);
    expect(done).toBe(0);
    await clock.pass(0.2);
    expect(done).toBe(3);
    const control = new AbortController();
    const aborted = failureOf(() => store.read(0, filled(0, 1), { signal: control.signal }));
    await settled();
    control.abort(new Error('enough'));
    expect(await aborted).toMatchObject({ code: 'ABORTED' });
    expect(clock.alarms).toBe(0);
  });

  for (const protocol of [nullCo, nullAio]) {
    it(`is what ${protocol.name}:// names, and no other name does`, async () => {
      const name = `${protocol.name}://`;
      const store = await protocol.open(name, { readOnly: true });
      expect([store.name, store.driver, store.size, store.supports.write]).toEqual([
        name,
        protocol.name,
        2 ** 30,
        false,
      ]);
      for (const other of [`${protocol.name}:`, `${protocol.name}://x`, `${protocol.name}:x`]) {
        expect(await failureOf(() => protocol.open(other, { readOnly: true }))).toMatchObject({ reason: 'null.name' });
      }
    });
  }

  it('is described by options', async () => {
    const graph = nullCo.graph;
    if (graph === undefined) throw new Error('no graph');
    const open = (given: Readonly<Record<string, unknown>>) =>
      graph.open(resolveOptions(graph.openOptions, given), { readOnly: false });
    expect((await open({})).size).toBe(2 ** 30);
    expect((await open({ size: 4096, readZeroes: true })).size).toBe(4096);
    expect(await failureOf(() => open({ latencyNs: Number.MAX_SAFE_INTEGER }))).toMatchObject({
      reason: 'null.latency',
    });
    expect(graph.parseName('null-co://')).toEqual({});
    expect(graph.nameOf(new Map())).toBe('null-co://');
    expect(graph.nameOf(new Map([['latency-ns', '5']]))).toBe('null-co://');
    expect(graph.nameOf(new Map([['size', '5']]))).toBeUndefined();
  });
});
