/** What can be done to an image, one entry each: a step of the feature cases. A step tells what it expects of the disk by changing `expected`; everything
 *  that is not told there must stay. Whoever adds a feature adds an entry, and a base that has it (bases.ts) where it needs one. */
import type { Image } from '../../src/image/image.ts';
import { below, noise } from '../../src/testing/random.ts';
import type { Expected } from './expected.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

/** What a step has to work with. */
export interface StepContext {
  readonly image: Image;
  readonly random: () => number;
  readonly expected: Expected;
  /** Contents of the snapshots that steps have made. */
  readonly frozen: Map<string, Expected>;
}

export interface Feature {
  readonly name: string;
  /** How often it is drawn, against the others. */
  readonly weight: number;
  run(context: StepContext): Promise<void>;
}

const pick = <T>(random: () => number, list: readonly T[]): T | undefined => list[below(random, list.length)];

/** A range of the disk, in the part that is looked at, or anywhere. */
function range({ image, random }: StepContext, unit = 1): readonly [at: number, length: number] {
  const size = image.virtualSize;
  const reach = Math.min(size, random() < 0.9 ? MiB : Number.MAX_SAFE_INTEGER);
  let at = Math.floor(random() * reach);
  at -= at % unit;
  const length = Math.min(unit === 1 ? 1 + below(random, 20 * KiB) : unit * (1 + below(random, 2)), size - at);
  return [at, length];
}

async function guestWrite(context: StepContext, compressed: boolean): Promise<void> {
  const { image, random, expected } = context;
  const unit = compressed ? image.node.limits.discardAlign : 1;
  const [at, most] = range(context, unit);
  const length = compressed ? Math.min(unit, most) : most;
  if (length <= 0) return;
  const bytes = compressed ? new Uint8Array(length).fill(1 + below(random, 255)) : noise(random, length);
  // until it has succeeded, either may be there
  expected.forget(at, length);
  await image.write(at, bytes, { compressed });
  expected.set(at, bytes);
}

export const FEATURES: readonly Feature[] = [
  { name: 'write', weight: 4, run: (context) => guestWrite(context, false) },
  { name: 'write compressed', weight: 1, run: (context) => guestWrite(context, true) },
  {
    name: 'zero',
    weight: 2,
    async run(context) {
      const [at, length] = range(context);
      if (length <= 0) return;
      context.expected.forget(at, length);
      await context.image.writeZeroes(at, length, { unmap: context.random() < 0.5 });
      context.expected.set(at, new Uint8Array(length));
    },
  },
  {
    name: 'discard',
    weight: 2,
    async run(context) {
      const [at, length] = range(context, context.random() < 0.7 ? context.image.node.limits.discardAlign : 1);
      if (length <= 0) return;
      context.expected.forget(at, length);
      await context.image.discard(at, length);
    },
  },
  { name: 'flush', weight: 1, run: ({ image }) => image.flush() },
  {
    name: 'snapshot create',
    weight: 3,
    async run({ image, random, expected, frozen }) {
      const made = await image.createSnapshot({ name: `s${below(random, 1000)}`, date: new Date(0) });
      frozen.set(made.id, expected.copy());
    },
  },
  {
    name: 'snapshot apply',
    weight: 2,
    async run({ image, random, expected, frozen }) {
      const chosen = pick(random, image.snapshots);
      if (chosen === undefined) return;
      await image.applySnapshot({ id: chosen.id });
      expected.become(frozen.get(chosen.id), image.virtualSize);
    },
  },
  {
    name: 'snapshot delete',
    weight: 2,
    async run({ image, random, frozen }) {
      const chosen = pick(random, image.snapshots);
      if (chosen === undefined) return;
      await image.deleteSnapshot({ id: chosen.id });
      frozen.delete(chosen.id);
    },
  },
  {
    name: 'bitmap add',
    weight: 2,
    async run({ image, random }) {
      const granularity = 2 ** (9 + below(random, 12));
      await image.addBitmap({ name: `b${below(random, 20)}`, granularity, enabled: random() < 0.7 });
    },
  },
  {
    name: 'bitmap change',
    weight: 2,
    async run({ image, random }) {
      const name = pick(random, await image.bitmaps())?.name;
      if (name === undefined) return;
      const change = below(random, 5);
      if (change === 0) await image.removeBitmap(name);
      else if (change === 1) await image.clearBitmap(name);
      else if (change === 2) await image.enableBitmap(name);
      else if (change === 3) await image.disableBitmap(name);
      else await image.mergeBitmap(name, pick(random, await image.bitmaps())?.name ?? name);
    },
  },
  {
    name: 'bitmap read',
    weight: 1,
    async run({ image, random }) {
      const name = pick(random, await image.bitmaps())?.name;
      if (name === undefined) return;
      let end = -1;
      for await (const { offset: start, length } of image.dirtyExtents(name)) {
        if (start <= end || !(length > 0)) throw new Error(`dirty part of ${length} bytes at ${start}, after ${end}`);
        end = start + length;
      }
      if (end > image.virtualSize) throw new Error(`dirty up to ${end} of ${image.virtualSize}`);
    },
  },
  {
    name: 'grow',
    weight: 2,
    async run({ image, random, expected }) {
      const size = image.virtualSize + 512 * (1 + below(random, 5000));
      await image.node.truncate(size);
      expected.resize(size);
    },
  },
  {
    name: 'shrink',
    weight: 1,
    async run({ image, random, expected }) {
      const size = Math.floor((image.virtualSize * random()) / 512) * 512;
      expected.forget(size, Number.MAX_SAFE_INTEGER);
      try {
        await image.node.truncate(size);
      } finally {
        // What fails behind the switch of the size, the giving back of space, leaves the new size.
        expected.resize(image.virtualSize);
      }
    },
  },
  {
    name: 'amend',
    weight: 2,
    async run({ image, random }) {
      if (image.amendOptions === undefined) return;
      const choices: Readonly<Record<string, unknown>>[] = [
        { compat: 'v2' },
        { compat: 'v3' },
        { lazyRefcounts: true },
        { lazyRefcounts: false },
        { refcountBits: 2 ** below(random, 7) },
      ];
      const known = choices.filter((choice) => Object.keys(choice).every((key) => key in (image.amendOptions ?? {})));
      const chosen = pick(random, known);
      if (chosen !== undefined) await image.amend(chosen);
    },
  },
];

/** One entry, by its weight. */
export function drawFeature(random: () => number): Feature {
  let at = below(
    random,
    FEATURES.reduce((sum, { weight }) => sum + weight, 0),
  );
  for (const feature of FEATURES) {
    if (at < feature.weight) return feature;
    at -= feature.weight;
  }
  return FEATURES[0] as Feature;
}
