import { describe, expect, it } from 'vitest';
import { isBlockError } from '../../../src/base/errors.ts';
import { parseOptions } from '../../../src/base/options.ts';
import { noise, seededRandom } from '../../../src/base/random.ts';
import { createCodecs } from '../../../src/codec/create.ts';
import { plainCodecs } from '../../../src/codec/plain.ts';
import type { FuzzFormat } from '../../../src/core/fuzz.ts';
import { ALL_FORMATS } from '../../../src/formats/all.ts';
import { ALL_FUZZ_FORMATS } from '../../../src/formats/all-fuzz.ts';
import { openImage } from '../../../src/image/open.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { damaged, describeDamage, drawDamages } from '../../../src/tools/fuzz/damage.ts';
import { FILE_TIME } from '../../../src/tools/fuzz/memory-files.ts';
import { IMAGE_NAME, makeSpecimen, SECRET, type Specimen } from '../../../src/tools/fuzz/specimen.ts';
import { scaled } from '../../support/seeds.ts';

const FORMATS = ALL_FUZZ_FORMATS.map((format) => [format.driver.name, format] as const);
const SEEDS = scaled(8);
const codecs = createCodecs({ workers: 0 });

const specimen = (format: FuzzFormat, seed: number): Promise<Specimen> => makeSpecimen(format, seed, ALL_FORMATS);
const imageOf = ({ files }: Specimen): Uint8Array => files.get(IMAGE_NAME) as Uint8Array;

/** Reads the whole disk. @returns how its check ended: `undefined` where the format has none. */
async function examine({ format, files, open, size }: Specimen): Promise<number | undefined> {
  const stores = new Map([...files].map(([name, bytes]) => [name, MemoryStore.from(bytes, { name })]));
  const image = await openImage(IMAGE_NAME, {
    formats: ALL_FORMATS,
    protocols: [
      {
        name: 'given',
        schemes: ['given'],
        open: async (name) => stores.get(name) as MemoryStore,
        status: async (name) => {
          const store = stores.get(name);
          return store && { kind: 'file', size: store.size, modifiedSeconds: FILE_TIME, identity: name };
        },
        resolve: (_base, relative) => relative,
      },
    ],
    format,
    references: 'allow',
    probeBacking: true,
    codecs,
    secrets: { secret: SECRET },
    options: (driver) => parseOptions(driver.openOptions, Object.entries(open)),
  });
  try {
    expect(image.virtualSize).toBe(size);
    await image.read(0, image.virtualSize);
    const { corruptions, checkErrors, leaks } = await image.check();
    return corruptions + checkErrors + leaks;
  } catch (error) {
    if (isBlockError(error) && error.code === 'UNSUPPORTED') return undefined;
    throw error;
  } finally {
    await image.close();
  }
}

describe.each(FORMATS)('an image of %s made for the fuzzer', (_name, format) => {
  it(`is sound (${SEEDS} seeds)`, { timeout: 300_000 }, async () => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const made = await specimen(format, seed);
      expect((await examine(made)) ?? 0, `seed ${seed}: ${made.features.join(', ')}`).toBe(0);
    }
  });

  it('is the same for the same seed, and another for another', async () => {
    for (const seed of [1, 2 ** 40]) {
      const [one, two, other] = [
        await specimen(format, seed),
        await specimen(format, seed),
        await specimen(format, seed + 1),
      ];
      expect(one, `seed ${seed}`).toEqual(two);
      expect(one.files, `seed ${seed}`).not.toEqual(other.files);
    }
  });

  it('has all its fields inside the file, and each with the value that stands there', async () => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const made = await specimen(format, seed);
      const image = imageOf(made);
      expect(made.anatomy.fields.length).toBeGreaterThan(20);
      for (const { at, bytes, old, littleEndian } of made.anatomy.fields) {
        const there = Buffer.from(image.subarray(at, at + bytes));
        if (littleEndian === true) there.reverse();
        expect(BigInt(`0x${there.toString('hex')}`)).toBe(old);
      }
    }
  });

  it('is damaged by the seed, every kind of field in turn', async () => {
    const made = await specimen(format, 5);
    const image = imageOf(made);
    const draw = (seed: number, density = 1) => drawDamages(made.format, seed, image, made.anatomy, { density });
    expect(draw(3)).toEqual(draw(3));
    expect(draw(3)).not.toEqual(draw(4));
    const kinds = new Set<string>();
    for (let seed = 0; seed < 2000; seed++) {
      const damages = draw(seed);
      expect(damages.length).toBeGreaterThan(0);
      for (const damage of damages) kinds.add(damage.kind === 'set' ? damage.what : damage.kind);
    }
    const all = new Set([...made.anatomy.fields.map(({ kind }) => kind), 'byte', 'cut', 'append']);
    expect([...all].filter((kind) => !kinds.has(kind))).toEqual([]);
    const mean = (density: number): number =>
      Array.from({ length: 50 }, (_, seed) => draw(seed, density).length).reduce((sum, count) => sum + count, 0) / 50;
    expect(mean(30)).toBeGreaterThan(mean(5));
    expect(mean(5)).toBeGreaterThan(mean(0));
    expect(mean(0)).toBe(1);
  });
});

describe('damage', () => {
  const sound = Uint8Array.from({ length: 8 }, (_, i) => i);

  it('can be done in part, and leaves the sound image as it was', () => {
    const set = { kind: 'set', what: 'x', at: 2, old: '0203', value: 'ffee' } as const;
    const cut = { kind: 'cut', size: 3 } as const;
    const append = { kind: 'append', length: 2, seed: 1 } as const;
    expect([...damaged(sound, [set])]).toEqual([0, 1, 0xff, 0xee, 4, 5, 6, 7]);
    expect([...damaged(sound, [set, cut])]).toEqual([0, 1, 0xff]);
    expect(damaged(sound, [append, cut]).length).toBe(5);
    expect([...sound]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(describeDamage(set)).toBe('x at 0x2: 0203 → ffee');
  });
});

describe('compression that is the same everywhere', () => {
  it.each(['deflate', 'zstd'] as const)('%s: is read by the real decoder', async (type) => {
    const random = seededRandom(11);
    const unit = 4096;
    const runs = new Uint8Array(unit).map((_, i) => Math.floor(i / 700));
    const mixed = new Uint8Array(unit).fill(7);
    mixed.set(noise(random, 900), 1500);
    const short = new Uint8Array(unit).map((_, i) => (i % 13 < 4 ? 200 : 9));
    const input = Buffer.concat([new Uint8Array(unit).fill(255), runs, mixed, short, noise(random, unit)]);
    const { bytes, starts, lengths } = await plainCodecs(codecs).compress(type, input, unit);
    expect(lengths[4]).toBe(0);
    const into = new Uint8Array(unit);
    for (let i = 0; i < 4; i++) {
      expect(lengths[i]).toBeGreaterThan(0);
      await codecs.decompress(type, bytes, starts.slice(i, i + 1), lengths.slice(i, i + 1), unit, into);
      expect(Buffer.compare(into, input.subarray(i * unit, (i + 1) * unit))).toBe(0);
    }
  });
});
