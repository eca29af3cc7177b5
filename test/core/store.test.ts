import { describe, expect, it } from 'vitest';
import { defineFormat, type FormatNode } from '../../src/core/format.ts';
import { type BlockNode, backingChain, childOf } from '../../src/core/node.ts';
import type { StoreLimits, StoreSupports } from '../../src/core/store.ts';
import { ManualStore } from '../support/manual-store.ts';

class Fixed extends ManualStore {
  override readonly supports: StoreSupports;
  override readonly limits: StoreLimits;

  constructor(supports: Partial<StoreSupports>, requestAlign = 1) {
    super(4096, 'fixed');
    this.supports = { ...new ManualStore().supports, ...supports };
    this.limits = { ...new ManualStore().limits, requestAlign };
  }
}

const code = (wanted: string): unknown => expect.objectContaining({ code: wanted });
const bytes = (length: number): Uint8Array => new Uint8Array(length);

describe('every store', () => {
  it('refuses offsets and lengths that are none before it looks at anything', () => {
    const store = new Fixed({});
    for (const offset of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
      expect(() => store.read(offset, bytes(1))).toThrow(code('OUT_OF_RANGE'));
      expect(() => store.write(offset, bytes(1))).toThrow(code('OUT_OF_RANGE'));
      expect(() => store.writeZeroes(offset, 1)).toThrow(code('OUT_OF_RANGE'));
      expect(() => store.discard(offset, 1)).toThrow(code('OUT_OF_RANGE'));
    }
    expect(() => store.writeZeroes(Number.MAX_SAFE_INTEGER, 2)).toThrow(code('OUT_OF_RANGE'));
    expect(() => store.discard(0, -1)).toThrow(code('OUT_OF_RANGE'));
    expect(store.log).toEqual([]);
  });

  it('refuses what is not aligned to its requests', () => {
    const store = new Fixed({}, 512);
    for (const [offset, length] of [
      [1, 512],
      [0, 100],
    ] as const) {
      expect(() => store.read(offset, bytes(length))).toThrow(code('INVALID_ARGUMENT'));
      expect(() => store.write(offset, bytes(length))).toThrow(code('INVALID_ARGUMENT'));
    }
    expect(store.read(512, bytes(1024))).toBeUndefined();
  });

  it('refuses writes when it is read-only, and has nothing to flush then', () => {
    const store = new Fixed({ write: false });
    expect(() => store.write(0, bytes(1))).toThrow(code('READ_ONLY'));
    expect(() => store.writeZeroes(0, 1)).toThrow(code('READ_ONLY'));
    expect(() => store.discard(0, 1)).toThrow(code('READ_ONLY'));
    expect(() => store.truncate(0)).toThrow(code('READ_ONLY'));
    expect(store.flush()).toBeUndefined();
    expect(store.log).toEqual([]);
  });

  it('refuses writes past its end when it cannot grow', () => {
    const store = new Fixed({ truncate: false });
    expect(() => store.write(4095, bytes(2))).toThrow(code('OUT_OF_RANGE'));
    expect(() => store.truncate(1)).toThrow(code('UNSUPPORTED'));
    expect(store.write(4095, bytes(1))).toBeUndefined();
    expect(() => new Fixed({}).truncate(-1)).toThrow(code('INVALID_ARGUMENT'));
  });

  it('does not do what is no request: no bytes, or a discard it does not support', () => {
    const store = new Fixed({ discard: false });
    void store.read(0, bytes(0));
    void store.write(0, bytes(0));
    void store.writeZeroes(0, 0);
    void store.discard(0, 512);
    expect(store.log).toEqual([]);
  });

  it('flushes when it is closed, once, closes though the flush fails, and refuses everything afterwards', async () => {
    const store = new Fixed({});
    store.failing.add('flush');
    const closing = store.close();
    expect(store.close()).toBe(closing);
    await expect(closing).rejects.toThrow('flush fails');
    expect([store.closes, store.closed, store.count('flush')]).toEqual([1, true, 1]);
    expect(() => store.read(0, bytes(1))).toThrow(code('CLOSED'));
    expect(() => store.write(0, bytes(0))).toThrow(code('CLOSED'));
    expect(() => store.flush()).toThrow(code('CLOSED'));
    expect(() => store.truncate(0)).toThrow(code('CLOSED'));
  });
});

describe('the graph', () => {
  const node = (name: string, backing?: BlockNode): BlockNode => {
    const store = new ManualStore(0, name);
    const children = [
      { role: 'file', name: 'file', node: new ManualStore(0, `${name}.file`) } as const,
      ...(backing === undefined ? [] : [{ role: 'backing', name: 'backing', node: backing } as const]),
    ];
    Object.defineProperty(store, 'children', { value: children });
    return store;
  };

  it('is walked by role, and from the top to the base', () => {
    const base = node('base');
    const middle = node('middle', base);
    const top = node('top', middle);
    expect(childOf(top, 'file')?.name).toBe('top.file');
    expect(childOf(base, 'backing')).toBeUndefined();
    expect(backingChain(top).map(({ name }) => name)).toEqual(['top', 'middle', 'base']);
  });
});

it('a driver is a plain value', () => {
  const driver = defineFormat({
    name: 'x',
    summary: 'x',
    extensions: [],
    capabilities: { create: false, write: false, backing: false, compress: false, check: false, zeroInit: true },
    openOptions: {},
    createOptions: {},
    probe: () => 0,
    open: () => Promise.resolve({} as FormatNode),
  });
  expect([driver.kind, driver.name]).toEqual(['format', 'x']);
});
