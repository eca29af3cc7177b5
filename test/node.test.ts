/** The Node face: paths, URLs and stores as images, with everything preset; on real files. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import * as isomorphic from '../src/index.ts';
import {
  chainInfo,
  checkImage,
  compareImages,
  convertImage,
  createImage,
  imageInfo,
  MemoryStore,
  mapImage,
  measureImage,
  openImage,
  planCreate,
} from '../src/node.ts';

const MiB = 1024 * 1024;
let dir = '';
const at = (name: string): string => join(dir, name);

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cowdisk-node-'));
});
afterEach(() => {
  rmSync(dir, { recursive: true });
});

async function extents(source: Parameters<typeof mapImage>[0], options: Parameters<typeof mapImage>[1] = {}) {
  const found: string[] = [];
  for await (const { start, length, data } of mapImage(source, options)) found.push(`${start}+${length} ${data}`);
  return found;
}

describe('the Node face', () => {
  it('creates, opens, writes and reads images by path and by URL', async () => {
    const name = at('a.qcow2');
    await createImage(name, { format: 'qcow2', size: MiB });
    {
      await using image = await openImage(name, { readOnly: false });
      await image.write(70_000, Uint8Array.of(1, 2, 3));
    }
    await using image = await openImage(pathToFileURL(name));
    expect([...(await image.read(69_999, 5))]).toEqual([0, 1, 2, 3, 0]);
    expect(readdirSync(dir)).toEqual(['a.qcow2']);
  });

  it('takes open stores', async () => {
    await createImage(at('plan.raw'), { format: 'raw', size: 512 });
    expect((await planCreate(at('x'), { format: 'qcow2', size: 512 })).options['clusterSize']).toBe(65_536);
    const store = new MemoryStore({ size: 4096 });
    await using image = await openImage(store, { format: 'raw' });
    expect(image.virtualSize).toBe(4096);
  });

  it('converts, compares, maps, checks and measures by name', async () => {
    const bytes = new Uint8Array(3 * MiB);
    bytes.fill(7, MiB, MiB + 5000);
    writeFileSync(at('a.raw'), bytes);
    const result = await convertImage(at('a.raw'), { name: at('a.qcow2'), format: 'qcow2' }, { compressed: true });
    expect(result).toMatchObject({ virtualSize: 3 * MiB, copied: 65_536, probedRaw: [at('a.raw')] });
    expect(await compareImages(at('a.raw'), pathToFileURL(at('a.qcow2')))).toMatchObject({ result: 'identical' });
    expect(await extents(at('a.qcow2'))).toEqual(['0+1048576 false', '1048576+65536 true', '1114112+2031616 false']);
    expect(await extents(at('a.qcow2'), { start: MiB, length: 10 })).toEqual([`${MiB}+10 true`]);
    expect((await checkImage(at('a.qcow2'))).result).toMatchObject({ corruptions: 0, leaks: 0 });
    expect(await measureImage({ size: MiB })).toEqual({ required: MiB, fullyAllocated: MiB });
    await convertImage([at('a.qcow2'), at('a.qcow2')], pathToFileURL(at('twice.raw')));
    expect(readFileSync(at('twice.raw')).equals(Buffer.concat([bytes, bytes]))).toBe(true);
    expect(readdirSync(dir).length).toBe(3);
  });

  it('denies references by default, and follows those it is told to', async () => {
    await createImage(at('base.qcow2'), { format: 'qcow2', size: MiB });
    await createImage(at('top.qcow2'), { format: 'qcow2', backing: { name: 'base.qcow2', format: 'qcow2' } });
    await expect(openImage(at('top.qcow2'))).rejects.toMatchObject({ code: 'REFERENCE_DENIED' });
    await (await openImage(at('top.qcow2'), { references: 'same-directory' })).close();
    expect((await imageInfo(at('top.qcow2'))).backing?.resolved).toBe(at('base.qcow2'));
    const infos = await chainInfo(at('top.qcow2'), { references: 'allow' });
    expect(infos.map(({ name }) => name)).toEqual([at('top.qcow2'), at('base.qcow2')]);
  });

  it('leaves images open that were open', async () => {
    await createImage(at('a.qcow2'), { format: 'qcow2', size: MiB });
    await using image = await openImage(at('a.qcow2'));
    expect(await extents(image)).toEqual([`0+${MiB} false`]);
    expect(await compareImages(image, image)).toMatchObject({ result: 'identical' });
    await convertImage(image, at('b.raw'));
    expect((await imageInfo(image)).name).toBe(at('a.qcow2'));
    expect((await image.read(0, 1))[0]).toBe(0);
  });

  it('refuses a directory, a missing file, a missing directory and a name that is too long, and leaves nothing behind', async () => {
    writeFileSync(at('a.raw'), new Uint8Array(512));
    await expect(openImage(dir)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(openImage(at('nope'))).rejects.toMatchObject({ code: 'NOT_FOUND', details: { errno: 'ENOENT' } });
    await expect(convertImage(at('a.raw'), dir)).rejects.toMatchObject({ reason: 'target.directory' });
    await expect(convertImage(at('a.raw'), at('no/x'))).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(convertImage(at('a.raw'), at('n'.repeat(300)))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(readdirSync(dir)).toEqual(['a.raw']);
  });

  it('has everything that the isomorphic face has', async () => {
    const node = await import('../src/node.ts');
    expect(Object.keys(node)).toEqual(expect.arrayContaining(Object.keys(isomorphic)));
  });
});
