/** The presence map by itself: where bits are, what is written and in which order, and what is never touched. */
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../src/base/errors.ts';
import type { FormatNode } from '../../src/core/format.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import type { BlockNode, Child } from '../../src/core/node.ts';
import { type PresenceGeometry, PresenceMap, type PresenceOptions } from '../../src/core/presence-map.ts';
import { RunList } from '../../src/core/run.ts';
import { CacheBudget } from '../../src/core/table-cache.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { type LogEntry, RecordingStore, WriteLog } from '../../src/testing/recording-store.ts';
import { bytesAllocatedIn, promisesIn } from '../support/count.ts';
import { ManualStore, turn } from '../support/manual-store.ts';

const UNIT = 512;
/** Bytes of bitmap in one table. */
const TABLE = 64 * 1024;
/** Shorter requests do not ask for holes. */
const WORTH_ASKING = 4;

/** Bitmap and data as an odd cow has them: neither begins at a sector. */
function geometry(units: number, more: Partial<PresenceGeometry> = {}): PresenceGeometry {
  const bitmapLength = Math.ceil(units / 8);
  const { bitmapOffset = 1056, unit = UNIT } = more;
  return {
    unit,
    virtualSize: units * unit,
    bitmapOffset,
    bitmapLength,
    bits: units,
    dataOffset: Math.ceil((bitmapOffset + bitmapLength) / 512) * 512,
    wordBytes: 1,
    ...more,
  };
}

interface Rig {
  readonly map: PresenceMap;
  readonly disk: MappedNode;
  readonly geometry: PresenceGeometry;
}

function rig(
  file: BlockNode,
  shape: PresenceGeometry,
  options: Partial<PresenceOptions> & { backing?: BlockNode } = {},
): Rig {
  const { backing, data = file, ...rest } = options;
  const children: Child[] = [{ role: 'file', name: 'file', node: file }];
  if (data !== file) children.push({ role: 'data', name: 'data', node: data });
  if (backing !== undefined) children.push({ role: 'backing', name: 'backing', node: backing });
  const map = new PresenceMap({
    file,
    data,
    child: data === file ? 0 : 1,
    hasBacking: backing !== undefined,
    readOnly: false,
    budget: new CacheBudget(1 << 20),
    unsafe: false,
    geometry: shape,
    refuseTail: (offset) => new BlockError('UNSUPPORTED', `no bit for ${offset}`, { reason: 'test.tail' }),
    ...rest,
  });
  const node: FormatNode = {
    format: 'presence',
    virtualSize: shape.virtualSize,
    unit: shape.unit,
    zeroUnit: shape.unit,
    recurse: 'none',
    readOnly: rest.readOnly ?? false,
    children,
    map: (offset, length, into) => map.map(offset, length, into),
    prepareWrite: (offset, length) => map.prepareWrite(offset, length),
    commitWrite: (plan) => map.commitWrite(plan),
    abortWrite: (plan) => map.abortWrite(plan),
    mapZeroes: (offset, length, zeroing) => map.zero(offset, length, zeroing),
    unmap: (offset, length, reveal) => map.unmap(offset, length, reveal),
    flush: () => map.flush(),
    close: () => map.close(),
    info: () => ({}),
  };
  return { map, disk: mappedNode(node, { name: 'disk' }), geometry: shape };
}

/** Every byte 0xee at first, but for the bitmap: what is touched shows. */
function odd(shape: PresenceGeometry, pageSize = 512): MemoryStore {
  const bytes = new Uint8Array(shape.dataOffset + shape.virtualSize).fill(0xee);
  bytes.fill(0, shape.bitmapOffset, shape.bitmapOffset + shape.bitmapLength);
  return MemoryStore.from(bytes, { pageSize });
}

async function bytesAt(file: BlockNode, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await file.read(offset, bytes);
  return bytes;
}

/** `kind from+units` of each run, whatever number of answers it came in. */
async function runsOf({ map, geometry: shape }: Rig, offset = 0, length = shape.virtualSize): Promise<string[]> {
  const { unit } = shape;
  const runs = new RunList();
  const found: { kind: string; start: number; end: number }[] = [];
  for (let at = offset; at < offset + length; at = runs.guestEnd) {
    runs.reset(at, offset + length);
    await map.map(at, offset + length - at, runs);
    expect(runs.guestEnd).toBeGreaterThan(at);
    for (let i = 0; i < runs.count; i++) {
      const { kind, guestOffset, length: bytes, hostOffset } = runs.at(i);
      if (kind === 'data') expect(hostOffset).toBe(shape.dataOffset + guestOffset);
      const last = found.at(-1);
      if (last?.kind === kind) last.end += bytes;
      else found.push({ kind, start: guestOffset, end: guestOffset + bytes });
    }
  }
  return found.map(({ kind, start, end }) => `${kind} ${start / unit}+${(end - start) / unit}`);
}

const writes = (entries: readonly LogEntry[]): string[] =>
  entries
    .filter(({ kind }) => kind !== 'read')
    .map((e) => (e.kind === 'flush' ? 'flush' : `${e.kind} ${e.offset}+${e.length}`));

const fill = (length: number, byte = 7): Uint8Array => new Uint8Array(length).fill(byte);

describe('mapping', () => {
  it('tells runs of present and absent units, with their places, least significant bit first (C-008)', async () => {
    const shape = geometry(100);
    const file = odd(shape);
    // Bits 1, 2, 8 to 15, and 99.
    await file.write(shape.bitmapOffset, Uint8Array.of(0b0000_0110, 0xff));
    await file.write(shape.bitmapOffset + 12, Uint8Array.of(0b0000_1000));
    const one = rig(file, shape);
    expect(await runsOf(one)).toEqual([
      'unallocated 0+1',
      'data 1+2',
      'unallocated 3+5',
      'data 8+8',
      'unallocated 16+83',
      'data 99+1',
    ]);
    const runs = new RunList();
    runs.reset(700, 5000);
    await one.map.map(700, 4300, runs);
    expect(runs.at(0)).toMatchObject({
      kind: 'data',
      length: 3 * UNIT - 700,
      hostOffset: shape.dataOffset + 700,
      writable: true,
    });
  });

  it("ends a run at the first unit that differs, however many of the bitmap's sectors it has passed (C-010, C-011)", async () => {
    const shape = geometry(20_000);
    const file = odd(shape);
    await file.write(shape.bitmapOffset, fill(1200, 0xff));
    await file.write(shape.bitmapOffset + 700, Uint8Array.of(0xdf));
    const one = rig(file, shape);
    expect(await runsOf(one)).toEqual([
      'data 0+5605',
      'unallocated 5605+1',
      'data 5606+3994',
      'unallocated 9600+10400',
    ]);
  });

  it('joins runs across the borders of tables', async () => {
    const shape = geometry(3 * TABLE * 8, { bitmapOffset: 1056 });
    const file = new MemoryStore({ size: shape.dataOffset, pageSize: 4096 });
    const border = (TABLE - shape.bitmapOffset) * 8;
    await file.write(TABLE - 2, fill(4, 0xff));
    const one = rig(file, shape);
    // What is not in memory ends the first answers; afterwards one answer has all.
    await runsOf(one);
    const runs = new RunList();
    runs.reset(0, shape.virtualSize);
    await one.map.map(0, shape.virtualSize, runs);
    expect([runs.count, runs.bytes]).toEqual([3, shape.virtualSize]);
    expect(runs.at(1)).toMatchObject({ kind: 'data', guestOffset: (border - 16) * UNIT, length: 32 * UNIT });
    expect(await runsOf(one)).toEqual([
      `unallocated 0+${border - 16}`,
      `data ${border - 16}+32`,
      `unallocated ${border + 16}+${3 * TABLE * 8 - border - 16}`,
    ]);
  });

  it('waits for the first missing table and for no other', async () => {
    const shape = geometry(3 * TABLE * 8, { bitmapOffset: 1056 });
    const file = new ManualStore(shape.dataOffset);
    const one = rig(file, shape);
    file.hold.add('read');
    const runs = new RunList();
    runs.reset(0, shape.virtualSize);
    const pending = one.map.map(0, shape.virtualSize, runs);
    await turn();
    expect(file.log).toEqual([`read ${shape.bitmapOffset}+${TABLE - shape.bitmapOffset}`]);
    await file.drain();
    await pending;
    expect(runs.bytes).toBe((TABLE - shape.bitmapOffset) * 8 * UNIT);
    expect(file.log).toHaveLength(1);
  });

  it('loads a table once, however many ask at once', async () => {
    const shape = geometry(1000);
    const file = new ManualStore(shape.dataOffset + shape.virtualSize);
    const one = rig(file, shape, { backing: new MemoryStore({ size: shape.virtualSize, readOnly: true }) });
    file.hold.add('read');
    const reads = Array.from({ length: 5 }, (_, i) => one.disk.read(i * 5000, new Uint8Array(100)));
    const wrote = one.disk.write(7777, fill(2000));
    await turn();
    expect(file.count('read')).toBe(1);
    file.hold.clear();
    await file.drain();
    await Promise.all([...reads, wrote]);
    expect(file.count('read')).toBe(1);
  });

  it('does not walk through tables behind the end of the file, however large the disk says it is', async () => {
    const units = 2 ** 43;
    const shape = geometry(units, { bitmapOffset: 1056 });
    // The first table is there, and the second in part.
    const memory = new MemoryStore({ size: TABLE + 100, pageSize: 512 });
    await memory.write(TABLE + 98, Uint8Array.of(0, 0xff));
    const log = new WriteLog();
    const one = rig(new RecordingStore(memory, { log, reads: true }), shape);
    const last = (TABLE + 99 - 1056) * 8;
    expect(await runsOf(one)).toEqual([
      `unallocated 0+${last}`,
      `data ${last}+8`,
      `unallocated ${last + 8}+${units - last - 8}`,
    ]);
    // The bits of the first are a hole.
    expect(log.entries.map(({ kind, offset }) => `${kind} ${offset}`)).toEqual([`read ${TABLE}`]);
    // What waits to be written there is seen all the same.
    await one.disk.write((units - 1) * UNIT, fill(UNIT));
    const tail = [`unallocated ${units - 4}+3`, `data ${units - 1}+1`];
    expect(await runsOf(one, (units - 4) * UNIT, 4 * UNIT)).toEqual(tail);
    await one.disk.flush();
    expect(await runsOf(one, (units - 4) * UNIT, 4 * UNIT)).toEqual(tail);
  });

  it.each(['now', 'later'])('steps over the holes of a sparse bitmap, told %s', async (when) => {
    const tables = 500;
    const units = tables * TABLE * 8;
    const shape = geometry(units, { bitmapOffset: 1056 });
    const random = seededRandom(7);
    const memory = new MemoryStore({ size: shape.dataOffset + shape.virtualSize, pageSize: 4096 });
    const present = [0, 1, units - 1, ...Array.from({ length: 12 }, () => below(random, units))].sort((a, b) => a - b);
    const bits = new Set(present);
    for (const unit of bits) {
      const at = 1056 + Math.floor(unit / 8);
      const [byte = 0] = await bytesAt(memory, at, 1);
      await memory.write(at, Uint8Array.of(byte | (1 << (unit % 8))));
    }
    const log = new WriteLog();
    const store = when === 'now' ? memory : new LateStore({ seed: 7 }, memory);
    const one = rig(new RecordingStore(store, { log, reads: true }), shape);
    const wanted: string[] = [];
    let at = 0;
    for (const unit of [...bits].filter((bit) => !bits.has(bit - 1))) {
      let end = unit;
      while (bits.has(end)) end++;
      if (unit > at) wanted.push(`unallocated ${at}+${unit - at}`);
      wanted.push(`data ${unit}+${end - unit}`);
      at = end;
    }
    if (at < units) wanted.push(`unallocated ${at}+${units - at}`);
    expect(await runsOf(one)).toEqual(wanted);
    const reads = log.entries.filter(({ kind }) => kind === 'read').length;
    expect(reads).toBeGreaterThan(0);
    expect(reads).toBeLessThanOrEqual(bits.size + WORTH_ASKING);
    // A change that is not written yet is no hole, whatever the file says.
    await one.disk.write(250 * TABLE * 8 * UNIT, fill(UNIT));
    expect(await runsOf(one)).toContain(`data ${250 * TABLE * 8}+1`);
    await one.disk.flush();
    expect(await runsOf(one)).toContain(`data ${250 * TABLE * 8}+1`);
    await one.disk.close();
  });

  it('sees bits that wait to be written behind the end of a bitmap file that is short', async () => {
    const shape = geometry(2 * TABLE * 8, { bitmapOffset: 4096, dataOffset: 0, unit: 4096 });
    const file = new MemoryStore({ name: 'bits', size: 4096 });
    const one = rig(file, shape, { data: new MemoryStore({ name: 'data', size: shape.virtualSize }) });
    const last = 2 * TABLE * 8 - 1;
    await one.disk.write(last * 4096, fill(4096));
    expect(file.size).toBe(4096);
    expect(await runsOf(one)).toEqual([`unallocated 0+${last}`, `data ${last}+1`]);
    await one.disk.write(last * 4096 + 5, fill(10, 8));
    await one.disk.flush();
    expect(await runsOf(one)).toEqual([`unallocated 0+${last}`, `data ${last}+1`]);
    expect(await bytesAt(one.disk, last * 4096 + 4, 3)).toEqual(Uint8Array.of(7, 8, 8));
  });

  it('passes the error of a table that cannot be read on, and calls nothing absent (C-011, C-031)', async () => {
    const shape = geometry(1000);
    const file = new FaultStore(odd(shape));
    const one = rig(file, shape, { backing: new MemoryStore({ size: shape.virtualSize, readOnly: true }) });
    for (const late of [false, true]) {
      file.fail({ on: 'read', offset: shape.bitmapOffset, length: 1, late });
      await expect((async () => await one.disk.read(0, new Uint8Array(10)))()).rejects.toMatchObject({ code: 'IO' });
      file.fail({ on: 'read', offset: shape.bitmapOffset, length: 1, late });
      await expect((async () => await one.disk.write(0, fill(10)))()).rejects.toMatchObject({ code: 'IO' });
    }
    await one.disk.write(0, fill(UNIT));
    expect(await runsOf(one)).toEqual(['data 0+1', 'unallocated 1+999']);
  });

  it.each([4, 8] as const)(
    'finds bits in big-endian words of %i bytes where such a host puts them',
    async (wordBytes) => {
      const units = wordBytes * 8 * 40;
      const shape = geometry(units, { wordBytes, bitmapOffset: 288 });
      const random = seededRandom(wordBytes);
      const words = new DataView(new ArrayBuffer(shape.bitmapLength));
      const expected = Array.from({ length: units }, () => random() < 0.5);
      expected.fill(true, 100, 400).fill(false, 500, 900);
      // As the code of 2001 did it: `words[i / bits] |= 1 << (i % bits)`, in words of the host.
      expected.forEach((present, i) => {
        if (!present) return;
        const at = Math.floor(i / (wordBytes * 8)) * wordBytes;
        const mask = 1n << BigInt(i % (wordBytes * 8));
        if (wordBytes === 8) words.setBigUint64(at, words.getBigUint64(at) | mask);
        else words.setUint32(at, Number(BigInt(words.getUint32(at)) | mask));
      });
      const file = odd(shape);
      await file.write(shape.bitmapOffset, new Uint8Array(words.buffer));
      const one = rig(file, shape);
      const found: boolean[] = [];
      for (const run of await runsOf(one)) {
        const count = Number(run.slice(run.indexOf('+') + 1));
        for (let i = 0; i < count; i++) found.push(run.startsWith('data'));
      }
      expect(found).toEqual(expected);
      // And sets them there.
      const at = expected.indexOf(false);
      await one.disk.write(at * UNIT, fill(UNIT));
      await one.disk.flush();
      const word = Math.floor(at / (wordBytes * 8)) * wordBytes;
      const mask = 1n << BigInt(at % (wordBytes * 8));
      const after = new DataView((await bytesAt(file, shape.bitmapOffset, shape.bitmapLength)).buffer);
      const of = (view: DataView): bigint => (wordBytes === 8 ? view.getBigUint64(word) : BigInt(view.getUint32(word)));
      expect(of(after)).toBe(of(words) | mask);
    },
  );

  it('calls units without a bit absent, and refuses to write them', async () => {
    const shape = geometry(1003, { bits: 1000, bitmapLength: 125 });
    const file = odd(shape);
    // Garbage behind the bitmap.
    await file.write(shape.bitmapOffset + 125, Uint8Array.of(0xff));
    const one = rig(file, shape, { backing: MemoryStore.from(fill(1003 * UNIT, 3), { readOnly: true }) });
    expect(await runsOf(one)).toEqual(['unallocated 0+1003']);
    await expect((async () => await one.disk.write(1000 * UNIT, fill(1)))()).rejects.toMatchObject({
      reason: 'test.tail',
    });
    await expect((async () => await one.disk.writeZeroes(998 * UNIT, 4 * UNIT))()).rejects.toMatchObject({
      reason: 'test.tail',
    });
    // A request that reaches into them does what can be done and fails.
    await expect((async () => await one.disk.write(999 * UNIT, fill(1000)))()).rejects.toMatchObject({
      reason: 'test.tail',
    });
    await one.disk.flush();
    expect(await bytesAt(file, shape.bitmapOffset + 125, 1)).toEqual(Uint8Array.of(0xff));
    expect((await runsOf(one)).at(-1)).toBe('unallocated 1000+3');
    // A discard is a hint, and does nothing to them.
    await one.disk.discard(0, shape.virtualSize);
    expect(await bytesAt(file, shape.dataOffset + 1000 * UNIT, 3 * UNIT)).toEqual(fill(3 * UNIT, 0xee));
  });

  it('knows bits past 2^32: disks of more than 2^32 units', async () => {
    const units = 2 ** 32 + 2 ** 20;
    const shape = geometry(units, { bitmapOffset: 8192 });
    const file = new MemoryStore({ size: shape.dataOffset + shape.virtualSize });
    const one = rig(file, shape);
    const places = [0, 2 ** 31 - 1, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 9, units - 1];
    for (const unit of places) await one.disk.write(unit * UNIT, fill(UNIT, 1 + (unit % 250)));
    await one.disk.write((2 ** 32 + 100) * UNIT + 100, fill(3 * UNIT));
    await one.disk.flush();
    for (const unit of places) {
      expect(await bytesAt(file, shape.dataOffset + unit * UNIT, UNIT)).toEqual(fill(UNIT, 1 + (unit % 250)));
      const [byte] = await bytesAt(file, shape.bitmapOffset + Math.floor(unit / 8), 1);
      expect((byte as number) & (1 << (unit % 8)), `bit ${unit}`).not.toBe(0);
    }
    const again = rig(file, shape);
    const from = 2 ** 32 - 2;
    expect(await runsOf(again, from * UNIT, 108 * UNIT)).toEqual([
      `unallocated ${from}+1`,
      `data ${from + 1}+2`,
      `unallocated ${from + 3}+8`,
      `data ${from + 11}+1`,
      `unallocated ${from + 12}+90`,
      `data ${from + 102}+4`,
      `unallocated ${from + 106}+2`,
    ]);
  });
});

describe('writing a bit', () => {
  it('touches the bytes of the changed bits and no others', async () => {
    const shape = geometry(10_000);
    const log = new WriteLog();
    const file = new RecordingStore(odd(shape), { log });
    const one = rig(file, shape);
    const bitmap = async (start: number, length: number): Promise<string[]> => {
      log.clear();
      await one.disk.write(start * UNIT, fill(length * UNIT));
      await one.disk.flush();
      return writes(log.entries)
        .filter((text) => text !== 'flush')
        .slice(1);
    };
    const at = shape.bitmapOffset;
    expect(await bitmap(13, 1)).toEqual([`write ${at + 1}+1`]);
    expect(await bitmap(8, 5)).toEqual([`write ${at + 1}+1`]);
    expect(await bitmap(23, 2)).toEqual([`write ${at + 2}+2`]);
    expect(await bitmap(4000, 4000)).toEqual([`write ${at + 500}+500`]);
    expect(await bitmap(9999, 1)).toEqual([`write ${at + 1249}+1`]);
  });

  it('keeps every byte around the bitmap, header tail and gap, when the bitmap begins in the middle of a sector (C-013)', async () => {
    const random = seededRandom(4);
    for (const bitmapOffset of [280, 288, 1048, 1056, 4120, 4136]) {
      const shape = geometry(4099, { bitmapOffset });
      const store = odd(shape);
      const one = rig(store, shape);
      for (let i = 0; i < 60; i++) {
        const unit = i < 2 ? i * 4098 : below(random, 4090);
        await one.disk.write(
          unit * UNIT,
          fill(UNIT * (1 + (i % 5 === 0 ? 0 : below(random, 4)))).subarray(0, (4099 - unit) * UNIT),
        );
        if (i % 7 === 0) await one.disk.flush();
      }
      await one.disk.close();
      const bytes = store.bytes();
      expect(bytes.subarray(0, bitmapOffset)).toEqual(fill(bitmapOffset, 0xee));
      const end = bitmapOffset + shape.bitmapLength;
      expect(bytes.subarray(end, shape.dataOffset)).toEqual(fill(shape.dataOffset - end, 0xee));
      // Of the last byte only three bits are of units.
      expect(bytes[end - 1] as number).toBeLessThan(8);
    }
  });

  it('merges with the bits that others have set in the same byte meanwhile', async () => {
    const shape = geometry(64);
    const file = odd(shape);
    const one = rig(file, shape);
    await Promise.all(Array.from({ length: 64 }, (_, i) => one.disk.write(i * UNIT, fill(UNIT, i + 1))));
    await one.disk.flush();
    expect(await bytesAt(file, shape.bitmapOffset, 8)).toEqual(fill(8, 0xff));
  });

  it('reaches over the border of two tables in one request', async () => {
    const shape = geometry(2 * TABLE * 8, { bitmapOffset: 1056 });
    const store = new MemoryStore({ size: shape.dataOffset, pageSize: 4096 });
    const log = new WriteLog();
    const one = rig(new RecordingStore(store, { log }), shape);
    const border = (TABLE - shape.bitmapOffset) * 8;
    const content = Uint8Array.from({ length: 20 * UNIT - 200 }, (_, i) => 1 + (i % 251));
    await one.disk.write((border - 10) * UNIT + 100, content);
    await one.disk.flush();
    expect(writes(log.entries)).toEqual([
      `write ${shape.dataOffset + (border - 10) * UNIT}+${10 * UNIT}`,
      `write ${shape.dataOffset + border * UNIT}+${10 * UNIT}`,
      'flush',
      `write ${TABLE - 2}+2`,
      `write ${TABLE}+2`,
      'flush',
    ]);
    expect(await bytesAt(store, TABLE - 3, 6)).toEqual(Uint8Array.of(0, 0b1100_0000, 0xff, 0xff, 0b0000_0011, 0));
    expect(await bytesAt(one.disk, (border - 10) * UNIT + 100, content.length)).toEqual(content);
  });
});

describe('the order of writes', () => {
  it('is data, one flush, bits, and a flush when one is asked for (C-013, C-019)', async () => {
    const shape = geometry(10_000);
    const log = new WriteLog();
    const one = rig(new RecordingStore(odd(shape), { log }), shape);
    await one.disk.write(0, fill(UNIT));
    await one.disk.write(9000 * UNIT, fill(UNIT));
    expect(writes(log.entries)).toEqual([
      `write ${shape.dataOffset}+${UNIT}`,
      `write ${shape.dataOffset + 9000 * UNIT}+${UNIT}`,
    ]);
    log.clear();
    await one.disk.flush();
    expect(writes(log.entries)).toEqual(['flush', `write ${shape.bitmapOffset}+1126`, 'flush']);
  });

  it('of units that are there is no more than the data: no bitmap, no flush, no lock (C-013)', async () => {
    const shape = geometry(100);
    const log = new WriteLog();
    const one = rig(new RecordingStore(odd(shape), { log, reads: true }), shape);
    await one.disk.write(0, fill(4 * UNIT));
    await one.disk.flush();
    log.clear();
    expect(one.disk.write(100, fill(700))).toBeUndefined();
    expect(log.entries.map(({ kind, offset, length }) => `${kind} ${offset}+${length}`)).toEqual([
      `write ${shape.dataOffset + 100}+700`,
    ]);
    await one.disk.flush();
    expect(writes(log.entries).slice(1)).toEqual(['flush']);
  });

  it('over two files is: data file, its flush, bits, their flush', async () => {
    const shape = geometry(100, { bitmapOffset: 4096, dataOffset: 0, unit: 4096 });
    const log = new WriteLog();
    const file = new RecordingStore(new MemoryStore({ name: 'bits', size: 4200 }), { log });
    const data = new RecordingStore(new MemoryStore({ name: 'data', size: shape.virtualSize }), { log });
    const base = MemoryStore.from(fill(shape.virtualSize, 3), { readOnly: true });
    const one = rig(file, shape, { data, backing: base });
    await one.disk.write(5000, fill(10));
    await one.disk.flush();
    const told = log.entries.map(({ store, kind, offset, length }) => `${store.name} ${kind} ${offset}+${length}`);
    expect(told).toEqual([
      // Both edges of the unit came from the backing file.
      'data write 4096+4096',
      'data flush 0+0',
      'bits write 4096+1',
      'data flush 0+0',
      'bits flush 0+0',
    ]);
    expect((await bytesAt(data, 4999, 12)).join()).toBe([3, ...Array<number>(10).fill(7), 3].join());
  });

  it('is not kept, and nothing flushed, where nothing need be durable', async () => {
    const shape = geometry(100);
    const log = new WriteLog();
    const one = rig(new RecordingStore(odd(shape), { log }), shape, { unsafe: true });
    await one.disk.write(0, fill(UNIT));
    await one.disk.flush();
    expect(writes(log.entries)).toEqual([`write ${shape.dataOffset}+${UNIT}`, `write ${shape.bitmapOffset}+1`]);
  });

  it('publishes nothing when the data cannot be written, and goes on afterwards', async () => {
    const shape = geometry(100);
    const file = new FaultStore(odd(shape));
    const one = rig(file, shape);
    for (const late of [false, true]) {
      file.fail({ on: 'write', late });
      await expect((async () => await one.disk.write(0, fill(UNIT)))()).rejects.toMatchObject({ code: 'IO' });
      expect(await runsOf(one)).toEqual(['unallocated 0+100']);
      expect(one.map.dirty).toBe(false);
    }
    await one.disk.write(0, fill(UNIT));
    expect(await runsOf(one)).toEqual(['data 0+1', 'unallocated 1+99']);
  });

  it('keeps the bits for the next flush when one fails', async () => {
    const shape = geometry(100);
    const store = odd(shape);
    const file = new FaultStore(store);
    const one = rig(file, shape);
    await one.disk.write(0, fill(UNIT));
    for (const nth of [1, 2]) {
      file.fail({ on: 'flush', nth, late: true });
      await expect((async () => await one.disk.flush())()).rejects.toMatchObject({ code: 'IO' });
    }
    file.fail({ on: 'write', offset: shape.bitmapOffset, length: 2 });
    await one.disk.write(8 * UNIT, fill(UNIT));
    await expect((async () => await one.disk.flush())()).rejects.toMatchObject({ code: 'IO' });
    await one.disk.flush();
    expect(await bytesAt(store, shape.bitmapOffset, 2)).toEqual(Uint8Array.of(1, 1));
  });
});

describe('zeroing', () => {
  it('over a backing file fills the units with zeros and sets their bits', async () => {
    const shape = geometry(100);
    const store = odd(shape);
    const log = new WriteLog();
    const one = rig(new RecordingStore(store, { log }), shape, { backing: MemoryStore.from(fill(100 * UNIT, 3)) });
    await one.disk.writeZeroes(10 * UNIT, 30 * UNIT);
    await one.disk.flush();
    expect(writes(log.entries)).toEqual([
      `zeroes ${shape.dataOffset + 10 * UNIT}+${30 * UNIT}`,
      'flush',
      `write ${shape.bitmapOffset + 1}+4`,
      'flush',
    ]);
    expect(await bytesAt(one.disk, 9 * UNIT, 32 * UNIT)).toEqual(
      Uint8Array.from([...fill(UNIT, 3), ...fill(30 * UNIT, 0), ...fill(UNIT, 3)]),
    );
  });

  it('without one does nothing to units that are not there', async () => {
    const shape = geometry(100);
    const log = new WriteLog();
    const one = rig(new RecordingStore(odd(shape), { log }), shape);
    await one.disk.write(20 * UNIT, fill(UNIT));
    log.clear();
    await one.disk.writeZeroes(0, shape.virtualSize);
    expect(writes(log.entries)).toEqual([`zeroes ${shape.dataOffset + 20 * UNIT}+${UNIT}`]);
    expect(await runsOf(one)).toEqual(['unallocated 0+20', 'data 20+1', 'unallocated 21+79']);
    expect(await bytesAt(one.disk, 0, shape.virtualSize)).toEqual(new Uint8Array(shape.virtualSize));
  });

  it('by discarding never goes past the end of a disk whose last unit is short', async () => {
    const shape = geometry(3, { unit: 4096, virtualSize: 2 * 4096 + 512, bitmapOffset: 4096, dataOffset: 0 });
    const file = new MemoryStore({ size: 8192 });
    const data = MemoryStore.from(fill(shape.virtualSize), { pageSize: 512 });
    const one = rig(file, shape, { data, backing: MemoryStore.from(fill(20_000, 3)) });
    await one.disk.discard(0, shape.virtualSize);
    expect(data.size).toBe(shape.virtualSize);
    expect(await bytesAt(one.disk, 0, shape.virtualSize)).toEqual(new Uint8Array(shape.virtualSize));
  });

  it('that the files cannot do cheaply is no discard, and is told where only that was wanted', async () => {
    const shape = geometry(100);
    const slow = new Proxy(odd(shape), {
      get(target, key) {
        if (key === 'writeZeroes') {
          return (offset: number, length: number, options?: { fastOnly?: boolean }) => {
            if (options?.fastOnly === true) throw new BlockError('UNSUPPORTED', 'cannot');
            return target.write(offset, new Uint8Array(length));
          };
        }
        const value = Reflect.get(target, key, target) as unknown;
        return typeof value === 'function' ? (value as (...args: unknown[]) => unknown).bind(target) : value;
      },
    });
    const one = rig(slow, shape, { backing: MemoryStore.from(fill(100 * UNIT, 3)) });
    await one.disk.write(0, fill(2 * UNIT));
    await one.disk.discard(0, 4 * UNIT);
    expect(await runsOf(one)).toEqual(['data 0+2', 'unallocated 2+98']);
    await expect((async () => await one.disk.writeZeroes(0, UNIT, { fastOnly: true }))()).rejects.toMatchObject({
      code: 'UNSUPPORTED',
    });
    await one.disk.writeZeroes(0, 4 * UNIT);
    expect(await bytesAt(one.disk, 0, 5 * UNIT)).toEqual(Uint8Array.from([...fill(4 * UNIT, 0), ...fill(UNIT, 3)]));
  });

  it('stops at a signal between two tables', async () => {
    const shape = geometry(2 * TABLE * 8);
    const abort = new AbortController();
    const store = new MemoryStore({ size: shape.dataOffset + shape.virtualSize });
    const file = new Proxy(store, {
      get(target, key) {
        const value = Reflect.get(target, key, target) as unknown;
        if (typeof value !== 'function') return value;
        return (...args: unknown[]) => {
          if (key === 'writeZeroes') abort.abort();
          return (value as (...all: unknown[]) => unknown).apply(
            target,
            key === 'writeZeroes' ? args.slice(0, 2) : args,
          );
        };
      },
    });
    const one = rig(file, shape, { backing: new MemoryStore({ size: shape.virtualSize, readOnly: true }) });
    await expect(
      (async () => await one.disk.writeZeroes(0, shape.virtualSize, { signal: abort.signal }))(),
    ).rejects.toMatchObject({ code: 'ABORTED' });
    expect(await runsOf(one)).toHaveLength(2);
  });
});

describe('dropping units', () => {
  it('clears their bits and shows the backing file, and sets them again with new data', async () => {
    const shape = geometry(1000);
    const store = odd(shape);
    const base = MemoryStore.from(fill(1000 * UNIT, 3));
    const one = rig(store, shape, { backing: base });
    await one.disk.write(0, fill(1000 * UNIT));
    await one.disk.flush();
    expect(await one.map.unmap(100 * UNIT, 500 * UNIT, 'backing')).toBe('done');
    expect(await runsOf(one)).toEqual(['data 0+100', 'unallocated 100+500', 'data 600+400']);
    expect(await bytesAt(one.disk, 99 * UNIT, 2 * UNIT)).toEqual(Uint8Array.from([...fill(UNIT), ...fill(UNIT, 3)]));
    await one.disk.write(200 * UNIT + 5, fill(1, 9));
    expect(await bytesAt(one.disk, 200 * UNIT + 4, 3)).toEqual(Uint8Array.of(3, 9, 3));
    await one.disk.flush();
    expect(await runsOf(rig(store, shape))).toEqual([
      'data 0+100',
      'unallocated 100+100',
      'data 200+1',
      'unallocated 201+399',
      'data 600+400',
    ]);
  });

  it('altogether clears the bitmap, and nothing else, durably', async () => {
    const shape = geometry(4099, { bitmapOffset: 1048 });
    const store = odd(shape);
    const log = new WriteLog();
    const one = rig(new RecordingStore(store, { log }), shape);
    await one.disk.write(0, fill(4099 * UNIT));
    await one.disk.flush();
    // Changes that nobody has flushed are dropped as well.
    await one.map.unmap(0, UNIT, 'backing');
    await one.disk.write(0, fill(1));
    log.clear();
    await one.map.clear();
    expect(writes(log.entries)).toEqual([`zeroes ${shape.bitmapOffset}+${shape.bitmapLength}`, 'flush']);
    expect(one.map.dirty).toBe(false);
    expect(await runsOf(one)).toEqual(['unallocated 0+4099']);
    await one.disk.flush();
    const bytes = store.bytes();
    expect(bytes.subarray(0, 1048)).toEqual(fill(1048, 0xee));
    expect(bytes.subarray(1048, 1048 + shape.bitmapLength)).toEqual(new Uint8Array(shape.bitmapLength));
    await one.disk.write(4098 * UNIT, fill(1));
    await one.disk.flush();
    expect(await runsOf(rig(store, shape))).toEqual(['unallocated 0+4098', 'data 4098+1']);
  });

  it('altogether makes no file longer that ends before or inside its bitmap', async () => {
    const shape = geometry(4096, { bitmapOffset: 1056 });
    for (const size of [1000, 1056, 1100]) {
      const store = new MemoryStore({ size });
      await rig(store, shape).map.clear();
      expect(store.size).toBe(size);
    }
  });
});

describe('a new shape', () => {
  it('is taken over with all that was written before', async () => {
    const small = geometry(100, { bitmapOffset: 4096, dataOffset: 0, unit: 4096 });
    const file = new MemoryStore({ size: 4096 });
    const data = new MemoryStore({ size: small.virtualSize });
    const one = rig(file, small, { data });
    await one.disk.write(99 * 4096, fill(4096));
    const large = geometry(TABLE * 8 + 100, { bitmapOffset: 4096, dataOffset: 0, unit: 4096 });
    await one.map.reshape(large);
    expect(one.map.geometry).toBe(large);
    expect(await runsOf({ ...one, geometry: large })).toEqual([
      'unallocated 0+99',
      'data 99+1',
      `unallocated 100+${TABLE * 8}`,
    ]);
    await one.map.unmap(99 * 4096, 4096, 'backing');
    await one.map.reshape(small);
    expect(await bytesAt(file, 4096 + 12, 1)).toEqual(Uint8Array.of(0));
  });
});

describe('what is missing', () => {
  it('is counted in bytes, the short last unit by what it has', async () => {
    const shape = geometry(1000, { virtualSize: 999 * UNIT + 100 });
    const one = rig(odd(shape), shape, { backing: MemoryStore.from(fill(1000)) });
    expect(await one.map.missing()).toBe(999 * UNIT + 100);
    await one.disk.write(0, fill(10 * UNIT));
    expect(await one.map.missing()).toBe(989 * UNIT + 100);
    await one.disk.write(999 * UNIT, fill(100));
    expect(await one.map.missing()).toBe(989 * UNIT);
    await expect(one.map.missing(AbortSignal.abort())).rejects.toMatchObject({ code: 'ABORTED' });
  });
});

describe('on tables in memory, over a store that answers at once', () => {
  const UNITS = 4 * TABLE * 8;

  async function full(): Promise<Rig> {
    const shape = geometry(UNITS, { bitmapOffset: 1056 });
    const store = new MemoryStore({ size: shape.dataOffset + shape.virtualSize });
    await store.write(shape.bitmapOffset, fill(shape.bitmapLength, 0xff));
    const one = rig(store, shape, { readOnly: true });
    await runsOf(one);
    return one;
  }

  it('mapping two million sectors makes no promise, one run, and no object per sector', async () => {
    const { map, geometry: shape } = await full();
    const runs = new RunList();
    const work = (): void => {
      runs.reset(0, shape.virtualSize);
      if (map.map(0, shape.virtualSize, runs) !== undefined) throw new Error('must not wait');
    };
    work();
    expect([runs.count, runs.bytes]).toEqual([1, shape.virtualSize]);
    expect(promisesIn(work)).toBe(0);
    expect(
      bytesAllocatedIn(() => {
        for (let i = 0; i < 5; i++) work();
      }),
    ).toBeLessThan(100_000);
  });

  it.each([4096, 2 * 1024 * 1024])('reading by %i bytes makes no promise and no object per sector', async (length) => {
    const { disk, geometry: shape } = await full();
    const into = new Uint8Array(length);
    const requests = Math.floor(Math.min(shape.virtualSize, 64 * 2 ** 20) / length);
    const work = (): void => {
      for (let i = 0; i < requests; i++) {
        if (disk.read(i * length, into) !== undefined) throw new Error('must not wait');
      }
    };
    work();
    expect(promisesIn(work)).toBe(0);
    // 8 sectors a request, or 4096: a single object for each would be hundreds of bytes, or tens of thousands.
    expect(bytesAllocatedIn(work) / requests).toBeLessThan(length === 4096 ? 300 : 4096);
  });
});
