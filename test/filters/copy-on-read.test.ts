import { describe, expect, it } from 'vitest';
import { settleAll } from '../../src/base/async.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { copyOnRead } from '../../src/filters/copy-on-read.ts';
import { throttle } from '../../src/filters/throttle.ts';
import { ThrottleGroup } from '../../src/filters/throttle-group.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { createImage } from '../../src/image/create.ts';
import type { Image } from '../../src/image/image.ts';
import { openImage } from '../../src/image/open.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';
import { everySeed } from '../support/seeds.ts';
import { bytesOf, expectSame, failureOf, filled, openFilter, statusText } from './support.ts';

const SIZE = 1024 * 1024;
const UNIT = 65_536;

/** A chain of three: `base` holds 7 in its first half, `mid` 8 in its third cluster, `top` nothing. */
async function chain(wrap: (node: BlockNode, name: string) => BlockNode = (node) => node) {
  const files = new MemoryFiles();
  const drivers = { formats: [qcow2, raw], protocols: [files.protocol] };
  const create = async (name: string, backing?: string): Promise<void> => {
    await createImage(name, {
      ...drivers,
      format: 'qcow2',
      size: SIZE,
      ...(backing === undefined ? {} : { backing: { name: backing, format: 'qcow2' } }),
    });
  };
  const write = async (name: string, offset: number, length: number, byte: number): Promise<void> => {
    const image = await openImage(name, { ...drivers, readOnly: false, references: 'allow' });
    await image.write(offset, filled(byte, length));
    await image.close();
  };
  await create('base');
  await write('base', 0, SIZE / 2, 7);
  await create('mid', 'base');
  await write('mid', 2 * UNIT, UNIT, 8);
  await create('top', 'mid');
  const open = async (): Promise<Image> => {
    const file = wrap(await files.protocol.open('top', { readOnly: false }), 'top');
    return await openImage(file, { ...drivers, name: 'top', format: 'qcow2', readOnly: false, references: 'allow' });
  };
  return { open, files };
}

describe('copy-on-read', () => {
  it('keeps what is read, whole clusters of it, zeros as zeros', async () => {
    const image = await (await chain()).open();
    const node = await openFilter(copyOnRead, { file: image.node });
    expect(await bytesOf(node, 70_000, 100)).toEqual(filled(7, 100));
    expect(await bytesOf(node, 12 * UNIT + 5, 100)).toEqual(new Uint8Array(100));
    expect(await statusText(image.node)).toBe(
      [
        `2:data 0+${UNIT}`,
        `data ${UNIT}+${UNIT}`,
        `1:data ${2 * UNIT}+${UNIT}`,
        `2:data ${3 * UNIT}+${5 * UNIT}`,
        `2:no zero ${8 * UNIT}+${4 * UNIT}`,
        `zero ${12 * UNIT}+${UNIT}`,
        `2:no zero ${13 * UNIT}+${3 * UNIT}`,
      ].join(', '),
    );
    await image.close();
  });

  it('reads a range that is there in parts', async () => {
    const image = await (await chain()).open();
    await image.write(UNIT, filled(9, UNIT));
    const node = await openFilter(copyOnRead, { file: image.node });
    const bytes = await bytesOf(node, 10, 3 * UNIT);
    const expected = new Uint8Array(4 * UNIT);
    for (const [i, byte] of [7, 9, 8, 7].entries()) expected.fill(byte, i * UNIT, (i + 1) * UNIT);
    expectSame(bytes, expected.slice(10, 10 + 3 * UNIT));
    expect(await statusText(image.node, 0, 4 * UNIT)).toMatch(/^data /);
    await image.close();
  });

  it('copies from no layer below the bottom one', async () => {
    const image = await (await chain()).open();
    const mid = image.node.children.find(({ name }) => name === 'backing')?.node as BlockNode;
    const node = await openFilter(copyOnRead, { file: image.node }, { bottom: 'm' }, { nodes: { m: mid } });
    expectSame(await bytesOf(node, 0, UNIT), filled(7, UNIT));
    expectSame(await bytesOf(node, 2 * UNIT, UNIT), filled(8, UNIT));
    expect(await statusText(image.node, 0, 4 * UNIT)).toBe(
      `2:data 0+${2 * UNIT}, data ${2 * UNIT}+${UNIT}, 2:data ${3 * UNIT}+${UNIT}`,
    );
    await image.close();
  });

  it('finds the image through other filters', async () => {
    const image = await (await chain()).open();
    const objects = { g: new ThrottleGroup({}) };
    const file = await openFilter(throttle, { file: image.node }, { throttleGroup: 'g' }, { objects });
    const node = await openFilter(copyOnRead, { file });
    await bytesOf(node, 0, 512);
    expect(await statusText(image.node, 0, UNIT)).toBe(`data 0+${UNIT}`);
    await image.close();
  });

  it('lets everything pass over what is no image', async () => {
    const file = MemoryStore.from(filled(3, 4096));
    const node = await openFilter(copyOnRead, { file });
    expect(await bytesOf(node)).toEqual(filled(3, 4096));
    expect(node.supports.sync).toBe(true);
  });

  it('is refused where nothing can be kept, and with a bottom that is none', async () => {
    const file = MemoryStore.from(filled(3, 4096));
    expect(await failureOf(() => openFilter(copyOnRead, { file }, {}, { readOnly: true }))).toMatchObject({
      code: 'READ_ONLY',
      reason: 'store.read-only',
    });
    const objects = { g: new ThrottleGroup({}) };
    const filter = await openFilter(throttle, { file }, { throttleGroup: 'g' }, { objects });
    const nodes = { filter, stray: new MemoryStore() };
    const open = (bottom: string) => () => openFilter(copyOnRead, { file }, { bottom }, { nodes });
    expect(await failureOf(open('nobody'))).toMatchObject({ reason: 'copy-on-read.bottom' });
    expect(await failureOf(open('filter'))).toMatchObject({ reason: 'copy-on-read.bottom-filter' });
    expect(await failureOf(open('stray'))).toMatchObject({ reason: 'copy-on-read.bottom-chain' });
  });

  it('fails a read whose copy cannot be written, and reads on once it can', async () => {
    let faulty: FaultStore | undefined;
    const { open } = await chain((node) => {
      faulty = new FaultStore(node);
      return faulty;
    });
    const image = await open();
    const node = await openFilter(copyOnRead, { file: image.node });
    const fault = faulty?.fail({ on: 'write', always: true, errno: 'ENOSPC' });
    expect(await failureOf(() => bytesOf(node, 0, 512))).toMatchObject({ code: 'NO_SPACE' });
    fault?.cancel();
    expect(await bytesOf(node, 0, 512)).toEqual(filled(7, 512));
    await image.close();
  });

  it('overwrites nothing that is written meanwhile, however late the file is', async () => {
    await everySeed(12, async (seed) => {
      const random = seededRandom(seed);
      const { open } = await chain((inner) => new LateStore({ seed }, inner));
      const image = await open();
      const node = await openFilter(copyOnRead, { file: image.node });
      const model = new Uint8Array(SIZE).fill(7, 0, SIZE / 2);
      model.fill(8, 2 * UNIT, 3 * UNIT);
      const before = model.slice();
      const written: (readonly [from: number, to: number])[] = [];
      const pendings: (Promise<void> | undefined)[] = [];
      const checks: (() => void)[] = [];
      for (let i = 0; i < 40; i++) {
        const offset = below(random, SIZE - 100_000);
        const length = 1 + below(random, 40_000);
        if (i % 2 === 0) {
          const bytes = new Uint8Array(length);
          pendings.push(node.read(offset, bytes));
          checks.push(() => {
            // Where nobody wrote, it is what was there before.
            for (let at = 0; at < length; at += 97) {
              const place = offset + at;
              if (written.some(([from, to]) => from <= place && place < to)) continue;
              if (bytes[at] !== before[place]) throw new Error(`seed ${seed}: byte ${place} reads ${bytes[at]}`);
            }
          });
        } else if (!written.some(([from, to]) => from < offset + length && offset < to)) {
          written.push([offset, offset + length]);
          if (i % 5 === 0) {
            model.fill(0, offset, offset + length);
            pendings.push(node.writeZeroes(offset, length));
          } else {
            const data = noise(random, length);
            model.set(data, offset);
            pendings.push(node.write(offset, data));
          }
        }
      }
      await settleAll(pendings);
      for (const check of checks) check();
      expectSame(await bytesOf(image.node), model);
      await image.close();
    });
  });
});
