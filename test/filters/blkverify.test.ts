/** blkverify: two children that must agree. */
import { describe, expect, it } from 'vitest';
import { blkverify } from '../../src/filters/blkverify.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { storeSuite } from '../conformance/store.suite.ts';
import { openFilter } from '../support/filters.ts';

async function opened() {
  const raw = new FaultStore(new MemoryStore({ size: 8192, name: 'raw' }));
  const test = new FaultStore(new MemoryStore({ size: 8192, name: 'test' }));
  return { raw, test, node: await openFilter(blkverify, { children: { raw, test } }) };
}

storeSuite({
  name: 'blkverify',
  create: async () => ({
    store: await openFilter(blkverify, { children: { raw: new MemoryStore(), test: new MemoryStore() } }),
  }),
});

describe('blkverify', () => {
  it('writes to both and reads what both hold', async () => {
    const { raw, test, node } = await opened();
    await node.write(100, new Uint8Array(50).fill(7));
    await node.writeZeroes(120, 10);
    const contents = [raw, test, node].map(async (store) => {
      const bytes = new Uint8Array(60);
      await store.read(95, bytes);
      return [...bytes].join();
    });
    const [a, b, c] = await Promise.all(contents);
    expect([b, c]).toEqual([a, a]);
    expect(a).toContain('7,0,0');
  });

  it('reports the first byte that differs', async () => {
    const { raw, node } = await opened();
    await raw.write(1000, new Uint8Array(3).fill(9));
    await node.read(0, new Uint8Array(1000));
    await expect(node.read(512, new Uint8Array(1024))).rejects.toMatchObject({
      code: 'IO',
      reason: 'blkverify.mismatch',
      details: { sentence: 'read offset=512 bytes=1024 contents mismatch at offset 1000' },
    });
  });

  it('reports that only one of them failed, when both have ended', async () => {
    const { raw, test, node } = await opened();
    raw.fail({ on: 'write', errno: 'ENOSPC', late: true });
    await expect(node.write(0, new Uint8Array(512))).rejects.toMatchObject({
      details: { sentence: 'write offset=0 bytes=512 return value mismatch success != ENOSPC' },
    });
    test.fail({ on: 'read' });
    await expect(node.read(0, new Uint8Array(512))).rejects.toMatchObject({
      details: { sentence: 'read offset=0 bytes=512 return value mismatch EIO != success' },
    });
  });

  it('fails as both do where they fail alike', async () => {
    const { raw, test, node } = await opened();
    raw.fail({ on: 'write', errno: 'ENOSPC' });
    test.fail({ on: 'write', errno: 'ENOSPC' });
    await expect(node.write(0, new Uint8Array(512))).rejects.toMatchObject({ code: 'NO_SPACE' });
  });

  it('has a short form', () => {
    expect(blkverify.parseName?.('a.raw:b.qcow2')).toEqual({ 'raw.filename': 'a.raw', 'test.filename': 'b.qcow2' });
    expect(() => blkverify.parseName?.('a.raw')).toThrow(/RAWCOPY:IMAGE/);
    expect(blkverify.shortName?.(new Map(), (name) => `${name}.img`)).toBe('blkverify:raw.img:test.img');
    expect(blkverify.shortName?.(new Map(), () => undefined)).toBeUndefined();
  });
});
