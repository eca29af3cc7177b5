/** Sound images at random: made in memory, by the library itself, of a seed. Owns what is written into them.
 *  Invariant: the same seed gives the same files on every machine, with the same version of the library: no clock, no chance, no compression
 *  library has a part in them. */
import { parseOptions } from '../../base/options.ts';
import { below, noise, pick, seededRandom, seedFor } from '../../base/random.ts';
import { KiB } from '../../base/sizes.ts';
import { createCodecs } from '../../codec/create.ts';
import { plainCodecs } from '../../codec/plain.ts';
import type { Chance, FormatDriver } from '../../core/format.ts';
import type { Anatomy, FuzzFormat, FuzzRecipe } from '../../core/fuzz.ts';
import { createImage } from '../../image/create.ts';
import type { Image } from '../../image/image.ts';
import { type ImageDrivers, openImage } from '../../image/open.ts';
import { MemoryFiles } from './memory-files.ts';

/** The name of the image among the files. */
export const IMAGE_NAME = 'image';
/** What opens encrypted images. */
export const SECRET = 'open sesame';

/** Bytes that one write has at most. */
const MOST = 48 * KiB;
const MOST_WRITES = 14;

export interface Specimen {
  readonly format: string;
  readonly seed: number;
  /** What is special about it, for people. */
  readonly features: readonly string[];
  /** Of the disk, bytes. */
  readonly size: number;
  /** The image, and what it names, by name. */
  readonly files: ReadonlyMap<string, Uint8Array>;
  /** Open options, by their names on the command line; the secret is {@link SECRET}. */
  readonly open: Readonly<Record<string, string>>;
  readonly anatomy: Anatomy;
  /** A range of the disk, for those who read or write somewhere; its end may be past that of the disk. */
  readonly place: { readonly offset: number; readonly length: number };
}

/** Makes the image of a seed.
 *  @param formats all that an image may consist of, backing files among them */
export async function makeSpecimen(
  format: FuzzFormat,
  seed: number,
  formats: readonly FormatDriver[],
): Promise<Specimen> {
  const { name } = format.driver;
  const stream = (purpose: string): (() => number) => seededRandom(seedFor(`${name} ${purpose}`, seed));
  const recipe = format.recipe(stream('recipe'));
  const files = new MemoryFiles();
  const codecs = createCodecs({ workers: 0 });
  try {
    const drivers: ImageDrivers = {
      formats,
      protocols: [files.protocol],
      codecs: plainCodecs(codecs),
      secrets: { secret: SECRET },
    };
    await new Maker(drivers, recipe, format.driver, stream('contents')).make(chanceOf(stream('keys')));
  } finally {
    await codecs.close();
  }
  const contents = files.contents();
  const image = contents.get(IMAGE_NAME) as Uint8Array;
  return {
    format: name,
    seed,
    features: recipe.features,
    size: recipe.size,
    files: contents,
    open: recipe.open,
    anatomy: format.anatomy(image, recipe),
    place: drawPlace(stream('place'), recipe.size),
  };
}

/** Keys that are no secret, and a clock by which every computation takes so long that the fewest rounds are enough. */
function chanceOf(random: () => number): Chance {
  let now = 0;
  return {
    fillRandom: (into) => into.set(noise(random, into.length)),
    now: () => {
      now += 1e9;
      return now;
    },
  };
}

function drawPlace(random: () => number, size: number): Specimen['place'] {
  const sector = 512;
  const length = sector * (1 + below(random, 64));
  const inside = sector * below(random, Math.max(1, Math.floor(size / sector)));
  const offset = random() < 0.8 ? inside : pick(random, [0, Math.max(0, size - sector), size, size + sector]);
  return { offset, length };
}

class Maker {
  readonly #drivers: ImageDrivers;
  readonly #recipe: FuzzRecipe;
  readonly #driver: FormatDriver;
  readonly #random: () => number;

  constructor(drivers: ImageDrivers, recipe: FuzzRecipe, driver: FormatDriver, random: () => number) {
    this.#drivers = drivers;
    this.#recipe = recipe;
    this.#driver = driver;
    this.#random = random;
  }

  async make(chance: Chance): Promise<void> {
    const { size, create, open, backing, snapshots, bitmaps } = this.#recipe;
    if (backing !== undefined) await this.#makeBacking(backing);
    await createImage(IMAGE_NAME, {
      ...this.#drivers,
      format: this.#driver,
      size,
      options: create,
      backing: backing === undefined ? undefined : { name: backing.name, format: backing.format },
      chance,
    });
    const image = await this.#open(IMAGE_NAME, this.#driver.name, open);
    try {
      const rounds = 1 + Math.max(snapshots, bitmaps);
      for (let round = 0; round < rounds; round++) {
        await this.#fill(image, 1 + below(this.#random, MOST_WRITES), this.#recipe.compressed);
        if (round < snapshots) await image.createSnapshot({ name: `snapshot ${round}`, date: new Date(0) });
        if (round < bitmaps) {
          const granularity = 512 * 2 ** below(this.#random, 8);
          await image.addBitmap({ name: `bitmap ${round}`, granularity, enabled: this.#random() < 0.7 });
        }
      }
      if (bitmaps > 0) await this.#fill(image, 3, false);
    } finally {
      await image.close();
    }
  }

  async #makeBacking({ name, format, size }: NonNullable<FuzzRecipe['backing']>): Promise<void> {
    await createImage(name, { ...this.#drivers, format, size });
    const image = await this.#open(name, format, {});
    try {
      await this.#fill(image, 1 + below(this.#random, 5), false);
    } finally {
      await image.close();
    }
  }

  #open(name: string, format: string, open: FuzzRecipe['open']): Promise<Image> {
    return openImage(name, {
      ...this.#drivers,
      format,
      readOnly: false,
      references: 'allow',
      probeBacking: true,
      options: (driver) => parseOptions(driver.openOptions, Object.entries(open)),
    });
  }

  async #fill(image: Image, writes: number, compressed: boolean): Promise<void> {
    const random = this.#random;
    for (let i = 0; i < writes; i++) {
      const draw = random();
      const [offset, length] = this.#range(image.virtualSize);
      if (draw < 0.12) await image.writeZeroes(offset, length, { unmap: random() < 0.5 });
      else if (draw < 0.2) await image.discard(offset, length);
      else if (compressed && draw < 0.5) await this.#writeCompressed(image, offset);
      else await image.write(offset, random() < 0.7 ? this.#pattern(length) : noise(random, length));
    }
  }

  async #writeCompressed(image: Image, near: number): Promise<void> {
    const unit = image.node.limits.discardAlign;
    const offset = near - (near % unit);
    const bytes = this.#pattern(Math.min(unit, image.virtualSize - offset));
    await image.write(offset, bytes, { compressed: true });
  }

  /** Runs of equal bytes. */
  #pattern(length: number): Uint8Array {
    const bytes = new Uint8Array(length).fill(1 + below(this.#random, 255));
    bytes.fill(1 + below(this.#random, 255), below(this.#random, length + 1));
    return bytes;
  }

  /** Bytes are written where they stand, whole sectors more often than not. */
  #range(size: number): readonly [offset: number, length: number] {
    const random = this.#random;
    let offset = Math.floor(random() * size);
    if (random() < 0.7) offset -= offset % 512;
    return [offset, Math.min(1 + below(random, MOST), size - offset)];
  }
}
