/** Pairs of images in memory with what they hold, for tools that take two: independent ones, an overlay and its base, siblings over one base,
 *  a disk and its own snapshot; in every format, with compressed, zero and discarded parts. Decided by the seed alone. */
import { addCow } from '../../src/formats/add-cow/driver.ts';
import { cow } from '../../src/formats/cow/driver.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { createImage } from '../../src/image/create.ts';
import type { Image } from '../../src/image/image.ts';
import { type OpenImageOptions, openImage } from '../../src/image/open.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { MemoryFiles, type MemoryFilesOptions } from '../image/support/memory-protocol.ts';

const KiB = 1024;
export const ALL = [qcow2, cow, addCow, raw] as const;

/** What `openImage` takes for the disk. */
export interface NamedDisk {
  readonly name: string;
  readonly format: string;
  readonly snapshot?: string;
  readonly content: Uint8Array;
}

export interface DiskPair {
  readonly files: MemoryFiles;
  readonly what: string;
  readonly a: NamedDisk;
  readonly b: NamedDisk;
}

export function toolsOf(files: MemoryFiles) {
  const absolute = async (name: string): Promise<string> => name;
  return { formats: ALL, protocols: [{ ...files.protocol, absolute }], references: 'allow' } as const;
}

export function openDisk(
  files: MemoryFiles,
  { name, format, snapshot }: NamedDisk,
  options: Partial<OpenImageOptions> = {},
): Promise<Image> {
  return openImage(name, { ...toolsOf(files), format, snapshot, onEvent: () => undefined, ...options });
}

const RELATIONS = ['strangers', 'overlay and base', 'base and overlay', 'siblings', 'snapshot', 'copy'] as const;

/** @param largest bytes of a disk at most. */
export async function makePair(seed: number, largest = 1024 * KiB, options?: MemoryFilesOptions): Promise<DiskPair> {
  const random = seededRandom(seed);
  const files = new MemoryFiles(options);
  const maker = new Maker(files, random, largest);
  const relation = RELATIONS[below(random, RELATIONS.length)] as (typeof RELATIONS)[number];
  const [a, b] = await maker.pair(relation);
  return { files, what: `seed ${seed}: ${relation}, ${a.format} and ${b.format}`, a, b };
}

class Maker {
  readonly #files: MemoryFiles;
  readonly #random: () => number;
  readonly #largest: number;
  #count = 0;

  constructor(files: MemoryFiles, random: () => number, largest: number) {
    this.#files = files;
    this.#random = random;
    this.#largest = largest;
  }

  async pair(relation: (typeof RELATIONS)[number]): Promise<[NamedDisk, NamedDisk]> {
    const a = await this.#disk(undefined);
    switch (relation) {
      case 'strangers':
        return [a, await this.#disk(undefined)];
      case 'overlay and base':
        return [await this.#disk(a), a];
      case 'base and overlay':
        return [a, await this.#disk(a)];
      case 'siblings':
        return [await this.#disk(a), await this.#disk(a)];
      case 'copy': {
        const copy = `copy-${this.#count++}`;
        this.#files.add(copy, a.content.slice());
        return [a, { name: copy, format: 'raw', content: await this.#change(copy, 'raw', a.content, 2) }];
      }
      case 'snapshot': {
        const disk = await this.#disk(undefined, 'qcow2');
        await using image = await openDisk(this.#files, disk, { readOnly: false });
        await image.createSnapshot({ name: 'before', date: new Date(0) });
        await image.close();
        const after = await this.#change(disk.name, 'qcow2', disk.content, 5);
        return [
          { ...disk, snapshot: 'before' },
          { ...disk, content: after },
        ];
      }
    }
  }

  async #disk(below_: NamedDisk | undefined, only?: string): Promise<NamedDisk> {
    const random = this.#random;
    const formats = only === undefined ? formatsOver(below_) : [only];
    const format = formats[below(random, formats.length)] as string;
    const name = `disk-${this.#count++}`;
    const chosen = 512 * (1 + below(random, this.#largest / 512));
    // cow and add-cow have the size of their backing file.
    const keeps = below_ !== undefined && (format !== 'qcow2' || random() < 0.7);
    const size = keeps ? below_.content.length : chosen;
    await createImage(name, {
      ...toolsOf(this.#files),
      format,
      ...(format === 'cow' ? {} : { size }),
      ...(below_ === undefined ? {} : { backing: { name: below_.name, format: below_.format } }),
      options:
        format === 'qcow2'
          ? { clusterSize: 512 * 2 ** below(random, 8) }
          : format === 'add-cow'
            ? { imageFile: `${name}.data` }
            : {},
    });
    const content = new Uint8Array(size);
    if (below_ !== undefined) content.set(below_.content.subarray(0, size));
    return { name, format, content: await this.#change(name, format, content, 6) };
  }

  /** @returns what the disk holds afterwards. */
  async #change(name: string, format: string, before: Uint8Array, count: number): Promise<Uint8Array> {
    const random = this.#random;
    const content = before.slice();
    await using image = await openDisk(this.#files, { name, format, content }, { readOnly: false });
    const { unit } = image.node.format;
    for (let i = below(random, count + 1); i > 0; i--) {
      const offset = below(random, content.length);
      const length = Math.min(content.length - offset, 1 + below(random, random() < 0.5 ? 2000 : this.#largest / 2));
      const kind = random();
      if (kind < 0.2 && format === 'qcow2' && offset - (offset % unit) + unit <= content.length) {
        const at = offset - (offset % unit);
        const bytes = new Uint8Array(unit).fill(1 + below(random, 255));
        await image.node.write(at, bytes, { compressed: true });
        content.set(bytes, at);
      } else if (kind < 0.4) {
        await image.writeZeroes(offset, length, { unmap: random() < 0.5 });
        content.fill(0, offset, offset + length);
      } else if (kind < 0.5) {
        // The same again: held, and no difference.
        await image.write(offset, content.subarray(offset, offset + length).slice());
      } else {
        const bytes = kind < 0.6 ? new Uint8Array(length).fill(7) : noise(random, length);
        await image.write(offset, bytes);
        content.set(bytes, offset);
      }
    }
    return content;
  }
}

/** cow has no place for the format of its backing file. */
function formatsOver(base: NamedDisk | undefined): readonly string[] {
  if (base === undefined) return ['raw', 'qcow2', 'qcow2'];
  return base.format === 'raw' ? ['qcow2', 'cow', 'add-cow'] : ['qcow2', 'qcow2', 'add-cow'];
}
