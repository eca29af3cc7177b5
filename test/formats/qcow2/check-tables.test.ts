import { describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.ts';
import { CheckRun } from '../../../src/formats/qcow2/check-run.ts';
import { readTables } from '../../../src/formats/qcow2/check-tables.ts';
import { readHeader } from '../../../src/formats/qcow2/header.ts';
import type { MemoryStore } from '../../../src/storage/memory.ts';
import { createInMemory } from './support.ts';

const TABLE = 65536;

/** Tables whose first byte is their number; every request is recorded. */
async function prepared(
  tables: number,
): Promise<{ run: CheckRun; file: MemoryStore; requests: [offset: number, length: number][] }> {
  const { file } = await createInMemory(4096);
  const header = await readHeader(file, 'x', { readOnly: true, forCheck: false });
  for (let index = 0; index < tables; index++) await file.write(index * TABLE, Uint8Array.of(index));
  const requests: [number, number][] = [];
  const read = file.read.bind(file);
  file.read = (offset, into, options) => {
    requests.push([offset / TABLE, into.length / TABLE]);
    return read(offset, into, options);
  };
  return { run: new CheckRun({ file, header, name: 'x' }, {}), file, requests };
}

describe('readTables', () => {
  it('visits tables in the order given, and reads neighbours together', async () => {
    const { run, requests } = await prepared(30);
    const wanted = [0, 1, 2, 3, 4, 5, 20, 9, 10, 9];
    const seen: number[] = [];
    await readTables(
      run,
      wanted.map((index) => index * TABLE),
      TABLE,
      (_index, view, at) => {
        seen.push(view.getUint8(at));
        return undefined;
      },
    );
    expect(seen).toEqual(wanted);
    expect(requests).toEqual([
      [0, 4],
      [4, 2],
      [20, 1],
      [9, 2],
      [9, 1],
    ]);
  });

  it('waits for visitors that need time, and asks for nothing when there is nothing', async () => {
    const { run, requests } = await prepared(4);
    let running = 0;
    await readTables(run, [0, TABLE, 2 * TABLE], TABLE, async () => {
      expect(++running).toBe(1);
      await Promise.resolve();
      running--;
    });
    requests.length = 0;
    await readTables(run, [], TABLE, () => undefined);
    expect(requests).toEqual([]);
  });

  it('tells unreadable tables one by one, and visits the others', async () => {
    const { run, file } = await prepared(8);
    const read = file.read.bind(file);
    file.read = (offset, into, options) => {
      if (offset <= 2 * TABLE && offset + into.length > 2 * TABLE)
        return Promise.reject(new BlockError('IO', 'bad sector'));
      return read(offset, into, options);
    };
    const seen: number[] = [];
    const failed: number[] = [];
    const offsets = [0, 1, 2, 3, 4, 5, 6, 7].map((index) => index * TABLE);
    const visit = (_index: number, view: DataView, at: number) => void seen.push(view.getUint8(at));
    await readTables(run, offsets, TABLE, visit as () => undefined, (index) => failed.push(index));
    expect([seen, failed]).toEqual([[0, 1, 3, 4, 5, 6, 7], [2]]);
    await expect(readTables(run, offsets, TABLE, () => undefined)).rejects.toMatchObject({ code: 'IO' });
  });

  it('ends only when every request it made has ended', async () => {
    const { run, file } = await prepared(32);
    let running = 0;
    file.read = async (offset) => {
      running++;
      await new Promise((resolve) => setImmediate(resolve));
      if (offset > 0) await new Promise((resolve) => setImmediate(resolve));
      running--;
      if (offset === 0) throw new BlockError('IO', 'first one fails');
    };
    const offsets = Array.from({ length: 32 }, (_, index) => index * TABLE);
    await expect(readTables(run, offsets, TABLE, () => undefined)).rejects.toMatchObject({ code: 'IO' });
    expect(running).toBe(0);
  });
});
