/** map, check, measure: the tools that ask one question. */
import { describe, expect, it } from 'vitest';
import type { FormatDriver } from '../../src/core/format.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { checkImage } from '../../src/tools/check.ts';
import { mapImage } from '../../src/tools/map.ts';
import { measureImage } from '../../src/tools/measure.ts';
import { drivers, FORMATS, KiB, MiB, make, makeOverlay, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';

describe('map', () => {
  async function lines(files: MemoryFiles, options: Parameters<typeof mapImage>[1] = {}): Promise<string[]> {
    await using image = await open(files, 'top', { references: 'allow' });
    const result: string[] = [];
    for await (const e of mapImage(image, options)) {
      const flags = `${e.present ? 'p' : '-'}${e.zero ? 'z' : '-'}${e.data ? 'd' : '-'}`;
      result.push(`${e.start}+${e.length} ${flags} ${e.depth} ${e.node ?? '-'}`);
    }
    return result;
  }

  it('tells the layer and the file of each range, and cuts at the asked ends', async () => {
    const files = new MemoryFiles();
    await make(files, 'base', { size: 256 * KiB }, [[0, 128 * KiB, 1]]);
    await makeOverlay(
      files,
      'top',
      'base',
      [
        [64 * KiB, 64 * KiB, 2],
        [192 * KiB, 64 * KiB, 0],
      ],
      { size: 320 * KiB },
    );
    expect(await lines(files)).toEqual([
      '0+65536 p-d 1 base',
      '65536+65536 p-d 0 top',
      '131072+65536 -z- 1 -',
      '196608+65536 pz- 0 -',
      '262144+65536 -z- 0 -',
    ]);
    expect(await lines(files, { start: 1000, length: 65_000 })).toEqual([
      '1000+64536 p-d 1 base',
      '65536+464 p-d 0 top',
    ]);
    expect(await lines(files, { start: MiB })).toEqual([]);
  });

  it('puts data behind the end of a shorter backing file where it is', async () => {
    const files = new MemoryFiles();
    await make(files, 'base', { size: 128 * KiB }, [[0, 64 * KiB, 1]]);
    await makeOverlay(files, 'top', 'base', [[256 * KiB, 64 * KiB, 2]], { size: 384 * KiB });
    expect(await lines(files)).toEqual([
      '0+65536 p-d 1 base',
      '65536+65536 -z- 1 -',
      '131072+131072 -z- 0 -',
      '262144+65536 p-d 0 top',
      '327680+65536 -z- 0 -',
    ]);
  });

  it.each([{ start: -1 }, { start: 1.5 }, { length: -1 }, { length: Number.NaN }])('refuses %o', async (options) => {
    const files = new MemoryFiles();
    await make(files, 'top', { size: 64 * KiB });
    await expect(lines(files, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', reason: 'map.range' });
  });
});

describe('check', () => {
  it('finds nothing wrong with a good image, read-only and without its backing file', async () => {
    const files = new MemoryFiles();
    await make(files, 'base', { size: MiB });
    await makeOverlay(files, 'a', 'base', [[0, 64 * KiB, 1]]);
    files.files.delete('base');
    files.log.length = 0;
    const report = await checkImage('a', drivers(files));
    expect(report).toMatchObject({
      name: 'a',
      format: 'qcow2',
      rechecked: false,
      result: { corruptions: 0, leaks: 0 },
    });
    expect(files.log).toEqual(['open a']);
    expect(files.open).toEqual([]);
  });

  it('repairs, looks again, and tells what is left now and what was fixed', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB }, [[0, 64 * KiB, 1]]);
    const end = files.bytes('a').length;
    // One more cluster, counted once and used by nobody.
    await files.files.get('a')?.content.truncate(end + 64 * KiB);
    await files.files.get('a')?.content.write(2 * 64 * KiB + (end / (64 * KiB)) * 2, Uint8Array.of(0, 1));
    const found = await checkImage('a', drivers(files));
    expect(found.result).toMatchObject({ leaks: 1, leaksFixed: 0 });
    const passes: number[] = [];
    let first: number | undefined;
    const report = await checkImage('a', {
      ...drivers(files),
      fix: 'leaks',
      onFinding: (_finding, pass) => passes.push(pass),
      onRecheck: ({ leaksFixed }) => {
        first = leaksFixed;
      },
    });
    expect(first).toBe(1);
    expect(report).toMatchObject({ rechecked: true, result: { leaks: 0, leaksFixed: 1, corruptions: 0 } });
    expect(new Set(passes)).toEqual(new Set([1]));
    expect((await checkImage('a', drivers(files))).result).toMatchObject({ leaks: 0, leaksFixed: 0 });
  });

  it('is refused for formats that have none', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(512));
    await expect(checkImage('a', { ...drivers(files), format: 'raw' })).rejects.toMatchObject({
      reason: 'check.unsupported',
      details: { format: 'raw' },
    });
    expect(files.open).toEqual([]);
  });
});

describe('measure', () => {
  it('asks the driver: for a size, or for an image', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB }, [[0, 64 * KiB, 1]]);
    await using source = await open(files, 'a');
    expect(await measureImage({ formats: FORMATS, size: 1000 })).toEqual({ required: 1024, fullyAllocated: 1024 });
    expect(await measureImage({ formats: FORMATS, source })).toEqual({ required: MiB, fullyAllocated: MiB });
    expect(await measureImage({ formats: FORMATS, format: 'qcow2', size: 1024 * MiB })).toMatchObject({
      required: 393_216,
      fullyAllocated: 1_074_135_040,
    });
    expect((await measureImage({ formats: FORMATS, format: 'qcow2', source })).required).toBe(6 * 64 * KiB);
    await expect(
      measureImage({ formats: FORMATS, format: 'qcow2', size: 512, options: { clusterSize: 3 } }),
    ).rejects.toMatchObject({ code: 'OPTION' });
  });

  it('wants exactly one of them, and a format that can tell', async () => {
    const { measure: _, ...rest } = raw;
    const mute: FormatDriver = { ...rest, name: 'mute' };
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB });
    await using source = await open(files, 'a');
    await expect(measureImage({ formats: FORMATS })).rejects.toMatchObject({ reason: 'measure.input' });
    await expect(measureImage({ formats: FORMATS, size: 1, source })).rejects.toMatchObject({
      reason: 'measure.input',
    });
    await expect(measureImage({ formats: [mute], format: 'mute', size: 1 })).rejects.toMatchObject({
      reason: 'measure.unsupported',
      details: { format: 'mute' },
    });
    await expect(measureImage({ formats: FORMATS, format: 'nofmt', size: 1 })).rejects.toMatchObject({
      reason: 'image.unknown-format',
    });
  });
});
