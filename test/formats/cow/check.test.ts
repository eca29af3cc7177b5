/** What a check of a cow image finds, what it repairs, and what it leaves alone. */
import { describe, expect, it } from 'vitest';
import type { MemoryStore } from '../../../src/storage/memory.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import { checkImage } from '../../../src/tools/check.ts';
import { CowFiles } from '../../support/cow-files.ts';
import { type CowImageSpec, cowAreas, cowImage, patternOf } from '../../support/cow-image.ts';
import {
  BASE_MTIME,
  BASE_NAME,
  baseStatus,
  checkCow,
  newCow,
  openCow,
  pattern,
  readAll,
  storeOf,
} from '../../support/cow-under-test.ts';

const SIZE = 1003 * 512;
const SPEC: CowImageSpec = {
  layout: 'v3',
  size: SIZE,
  backingName: BASE_NAME,
  mtime: BASE_MTIME,
  present: [0, 5, 6, 999],
};
const AREAS = cowAreas(SPEC);

const reasons = (findings: readonly { readonly kind: string; readonly reason: string }[]): string[] =>
  findings.map(({ kind, reason }) => `${kind} ${reason}`);

describe('a sound image', () => {
  it('has nothing to tell, but how much of it is there', async () => {
    const { result, findings } = await checkCow(cowImage(SPEC), { status: baseStatus({ size: SIZE }) });
    expect(findings).toEqual([]);
    expect(result).toMatchObject({
      corruptions: 0,
      leaks: 0,
      checkErrors: 0,
      corruptionsFixed: 0,
      totalClusters: 1003,
      allocatedClusters: 4,
      imageEndOffset: AREAS.dataOffset + SIZE,
    });
  });

  it('is told to be sound without its base, with a note', async () => {
    const { result, findings } = await checkCow(cowImage(SPEC));
    expect(reasons(findings)).toEqual(['note cow.backing-unseen']);
    expect(result.corruptions).toBe(0);
  });

  it('is not written by a repair', async () => {
    const store = new RecordingStore(cowImage(SPEC));
    const { result } = await checkCow(store, { fix: 'all', status: baseStatus({ size: SIZE }) });
    expect(result).toMatchObject({ corruptions: 0, corruptionsFixed: 0 });
    expect(store.entries.filter(({ kind }) => kind !== 'flush')).toEqual([]);
  });

  it('is checked with what was written and not flushed yet', async () => {
    const { node } = await openCow(await newCow(SIZE));
    await node.write(0, pattern(10 * 512));
    const result = await node.format.check?.check({});
    expect(result).toMatchObject({ allocatedClusters: 10, corruptions: 0 });
    await node.close();
  });

  it('of more sectors than one answer of the map has room for is counted right', async () => {
    const present = Array.from({ length: 500 }, (_, i) => 2 * i);
    const { result } = await checkCow(cowImage({ ...SPEC, present }));
    expect(result).toMatchObject({ allocatedClusters: 500, totalClusters: 1003 });
  });
});

describe('bits behind the disk', () => {
  async function stray(): Promise<MemoryStore> {
    const file = cowImage(SPEC);
    // Bits 1000 to 1002 are of sectors, those behind them of none.
    await file.write(AREAS.bitmapOffset + 125, Uint8Array.of(0b1010_0100));
    return file;
  }
  const options = { layout: 'v3' } as const;

  it('are found, and cleared by a repair that leaves the others', async () => {
    const file = await stray();
    const found = await checkCow(file, { options, status: baseStatus() });
    expect(reasons(found.findings)).toEqual(['corruption cow.stray-bits']);
    expect(found.findings[0]?.message).toMatch(/^ERROR the bitmap marks sectors behind the disk/);
    expect(found.result.corruptions).toBe(1);

    const repaired = await checkCow(file.reopen(), { options, fix: 'all', status: baseStatus() });
    expect(repaired.findings[0]?.message).toMatch(/^Repairing /);
    expect(repaired.result).toMatchObject({ corruptions: 0, corruptionsFixed: 1 });
    expect(file.bytes()[AREAS.bitmapOffset + 125]).toBe(0b0000_0100);
    expect((await checkCow(file.reopen(), { status: baseStatus() })).result.corruptions).toBe(0);
  });

  it('stay cleared, whatever is written to the same image afterwards', async () => {
    const file = await stray();
    const { node } = await openCow(file, { options, forCheck: true });
    await node.read(1000 * 512, new Uint8Array(512));
    await node.format.check?.check({ fix: 'all' });
    await node.write(1001 * 512, pattern(512));
    await node.close();
    expect(file.bytes()[AREAS.bitmapOffset + 125]).toBe(0b0000_0110);
  });

  it('are cleared without losing what was written next to them and not flushed', async () => {
    const file = await stray();
    const { node } = await openCow(file, { options, forCheck: true });
    await node.write(1000 * 512, pattern(512));
    expect(await node.format.check?.check({ fix: 'all' })).toMatchObject({ corruptionsFixed: 1, allocatedClusters: 6 });
    await node.close();
    expect(file.bytes()[AREAS.bitmapOffset + 125]).toBe(0b0000_0101);
  });

  it('are left by a repair of leaks', async () => {
    const file = await stray();
    const { result } = await checkCow(file, { options, fix: 'leaks' });
    expect(result).toMatchObject({ corruptions: 1, corruptionsFixed: 0 });
    expect(file.bytes()[AREAS.bitmapOffset + 125]).toBe(0b1010_0100);
  });
});

describe('a file that ends before its last sector', () => {
  it('is found, and made longer by a repair: the sector reads as before', async () => {
    const file = cowImage(SPEC);
    await file.truncate(AREAS.dataOffset + 999 * 512 + 100);
    const found = await checkCow(file, { status: baseStatus() });
    expect(reasons(found.findings)).toEqual(['corruption cow.short']);
    const longer = file.reopen();
    const repaired = await checkCow(longer, { fix: 'all', status: baseStatus() });
    expect(repaired.result).toMatchObject({ corruptions: 0, corruptionsFixed: 1 });
    expect(longer.size).toBe(AREAS.dataOffset + 1000 * 512);
    const { node } = await openCow(longer.reopen());
    const sector = new Uint8Array(512);
    sector.set(patternOf(999).subarray(0, 100));
    expect(await readAll(node, 999 * 512, 512)).toEqual(sector);
  });

  it('is beyond repair where it cannot be made longer', async () => {
    const bytes = cowImage(SPEC)
      .bytes()
      .subarray(0, AREAS.dataOffset + 999 * 512 + 100);
    const fixed = new Proxy(storeOf(bytes), {
      get(target, key) {
        if (key === 'supports') return { ...target.supports, truncate: false };
        const value = Reflect.get(target, key, target) as unknown;
        return typeof value === 'function' ? (value as (...args: unknown[]) => unknown).bind(target) : value;
      },
    });
    const { result } = await checkCow(fixed, { fix: 'all', status: baseStatus() });
    expect(result).toMatchObject({ corruptions: 1, corruptionsFixed: 0 });
  });
});

describe('a file that goes on behind its data', () => {
  it('is noted, and not cut', async () => {
    const file = cowImage({ ...SPEC, fileSize: AREAS.dataOffset + SIZE + 700 });
    const { result, findings } = await checkCow(file, { fix: 'all', options: { layout: 'v3' }, status: baseStatus() });
    expect(reasons(findings)).toEqual(['note cow.long']);
    expect(findings[0]?.message).toMatch(/^700 bytes behind the disk's data/);
    expect(result.corruptions).toBe(0);
    expect(file.size).toBe(AREAS.dataOffset + SIZE + 700);
  });
});

describe('a base that is not as recorded', () => {
  const moved = baseStatus({ modifiedSeconds: 77, size: SIZE });

  it('is recorded anew by a repair, if the caller answers for it', async () => {
    const file = cowImage(SPEC);
    const before = file.bytes();
    const unasked = await checkCow(file, { fix: 'all', status: moved });
    expect(unasked.result).toMatchObject({ corruptions: 1, corruptionsFixed: 0 });
    expect(file.bytes()).toEqual(before);
    const asked = await checkCow(file.reopen(), { fix: 'all', status: moved, options: { ignoreMismatch: true } });
    expect(asked.result).toMatchObject({ corruptions: 0, corruptionsFixed: 1 });
    const expected = before.slice();
    new DataView(expected.buffer).setUint32(8, 77);
    expect(file.bytes()).toEqual(expected);
    expect((await checkCow(file.reopen(), { status: moved })).findings).toEqual([]);
  });

  it('of another size never is', async () => {
    const file = cowImage(SPEC);
    const before = file.bytes();
    const status = baseStatus({ modifiedSeconds: 77, size: SIZE + 512 });
    const { result } = await checkCow(file, { fix: 'all', status, options: { ignoreMismatch: true } });
    expect(result).toMatchObject({ corruptions: 1, corruptionsFixed: 0 });
    expect(file.bytes()).toEqual(before);
  });
});

describe('everything at once, by name', () => {
  it('is repaired and looked at again', async () => {
    const files = new CowFiles();
    const file = cowImage({ ...SPEC, present: [0, 1002] });
    await file.write(AREAS.bitmapOffset + 125, Uint8Array.of(0xff));
    await file.truncate(AREAS.dataOffset + 1002 * 512 + 1);
    files.put('a.cow', file.bytes());
    files.put(BASE_NAME, pattern(SIZE), 5);
    const told: string[] = [];
    const { result, rechecked } = await checkImage('a.cow', {
      ...files.drivers,
      lookAt: 'allow',
      references: 'layer-only',
      options: { layout: 'v3', ignoreMismatch: true },
      fix: 'all',
      onFinding: ({ reason }, pass) => told.push(`${pass} ${reason}`),
    });
    expect(told).toEqual(['1 cow.stray-bits', '1 cow.short', '1 cow.mismatch']);
    expect(rechecked).toBe(true);
    expect(result).toMatchObject({ corruptions: 0, corruptionsFixed: 3, allocatedClusters: 4 });
    // What is found without an option passes now, and is written as any other.
    await using image = await files.image('a.cow', { references: 'allow', readOnly: false });
    expect(await image.read(1002 * 512, 2)).toEqual(Uint8Array.of(patternOf(1002)[0] as number, 0));
    await image.write(0, pattern(100));
  });

  it('stops at a signal', async () => {
    const { node } = await openCow(cowImage(SPEC), { readOnly: true });
    await expect(node.format.check?.check({ signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' });
  });
});
