/** Features of images that this library does not make, and must not damage: internal snapshots, persistent bitmaps, images that were not
 *  closed, encrypted ones, ones marked corrupt. Made by the real QEMU, written by us, judged by both. */
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { checkImage, convertImage, type ImageEvent, imageInfo, openImage } from '../../src/node.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { describeWithQemu, failureOf } from '../formats/qcow2/support.ts';
import { KiB, MiB } from './qcow2-cases.ts';
import { countersOf, faultsOf, firstDifference, NONE, Workbench } from './qcow2-workbench.ts';
import { spawn } from './transcript-harness.ts';

const SEED = Number(process.env['COWDISK_SEED'] ?? 1);

function bench(name: string): Workbench {
  const made = new Workbench(mkdtempSync(join(tmpdir(), `cowdisk-${name}-`)));
  afterAll(() => rmSync(made.directory, { recursive: true, force: true }));
  return made;
}

/** Writes, zeroes, discards and compresses at random through our writer; the bytes follow. */
async function churn(path: string, bytes: Buffer, random: () => number, options: { compress: boolean }): Promise<void> {
  const image = await openImage(path, { format: 'qcow2', references: 'allow', readOnly: false });
  const unit = image.node.limits.discardAlign;
  try {
    for (let i = 0; i < 24; i++) {
      const offset = below(random, bytes.length);
      const length = Math.min(1 + below(random, 3 * unit), bytes.length - offset);
      const cluster = offset - (offset % unit);
      const rest = Math.min(unit, bytes.length - cluster);
      switch (below(random, options.compress ? 4 : 3)) {
        case 0: {
          const data = noise(random, length);
          bytes.set(data, offset);
          await image.write(offset, data);
          break;
        }
        case 1:
          bytes.fill(0, offset, offset + length);
          await image.writeZeroes(offset, length, { unmap: random() < 0.5 });
          break;
        case 2:
          await image.discard(cluster, rest);
          bytes.set(await image.read(cluster, rest), cluster);
          break;
        default: {
          const data = new Uint8Array(rest).fill(below(random, 256));
          bytes.set(data, cluster);
          await image.write(cluster, data, { compressed: true });
        }
      }
    }
    expect(firstDifference(await image.read(0, bytes.length), bytes)).toBeUndefined();
  } finally {
    await image.close();
  }
}

describeWithQemu('an image with internal snapshots', () => {
  const here = bench('snapshots');
  const KINDS: readonly (readonly [options: string, compress: boolean])[] = [
    ['cluster_size=4k', true],
    ['cluster_size=512,refcount_bits=4', false],
    ['cluster_size=1k,compat=v2', true],
    ['cluster_size=16k,extended_l2=on,refcount_bits=64', true],
    ['cluster_size=64k,compression_type=zstd,lazy_refcounts=on', true],
  ];

  it.each(KINDS)('keeps them while it is written: %s', async (options, compress) => {
    const random = seededRandom(SEED * 31 + options.length);
    const bytes = Buffer.alloc(1 * MiB + 512);
    const name = `image-${options.length}`;
    await here.img('create', '-q', '-f', 'qcow2', '-o', options, name, String(bytes.length));
    await churn(here.path(name), bytes, random, { compress });
    const taken: Buffer[] = [];
    for (const snapshot of ['first', 'the second']) {
      await here.img('snapshot', '-c', snapshot, name);
      taken.push(Buffer.from(bytes));
      await churn(here.path(name), bytes, random, { compress });
      await sound(name);
    }
    await same(name, bytes);
    for (const [index, snapshot] of ['first', 'the second'].entries()) {
      await here.img('convert', '-l', `snapshot.name=${snapshot}`, '-f', 'qcow2', '-O', 'raw', name, 'snapshot.raw');
      expect(
        firstDifference(readFileSync(here.path('snapshot.raw')), taken[index] as Buffer),
        snapshot,
      ).toBeUndefined();
    }
    // QEMU goes back to one and drops it: what we did to the refcounts must fit
    await here.img('snapshot', '-a', 'first', name);
    await here.img('snapshot', '-d', 'first', name);
    await sound(name);
    const back = taken[0] as Buffer;
    await same(name, back);
    await churn(here.path(name), back, random, { compress });
    await sound(name);
    await here.img('snapshot', '-d', 'the second', name);
    await sound(name);
    await same(name, back);
  });

  async function sound(name: string): Promise<void> {
    const counters = await here.check(name);
    expect(faultsOf(counters)).toEqual(NONE);
    const { result } = await checkImage(here.path(name), { format: 'qcow2' });
    expect(countersOf(result)).toEqual(counters);
  }

  async function same(name: string, bytes: Buffer): Promise<void> {
    expect(firstDifference(await here.bytes(name, 'qcow2', 0, bytes.length), bytes)).toBeUndefined();
  }
});

describeWithQemu('an image that was not closed', () => {
  const here = bench('dirty');

  /** QEMU writes with lazy refcounts, and dies. */
  async function abandoned(name: string, options: string): Promise<void> {
    await here.img('create', '-q', '-f', 'qcow2', '-o', `lazy_refcounts=on,${options}`, name, '2M');
    await here.io(name, ['write -P 3 0 200k'], '-f', 'qcow2');
    const commands = ['write -P 4 100k 300k', 'write -P 5 1M 9k', 'write -z 1500k 64k', 'flush', 'abort'];
    const args = commands.flatMap((command) => ['-c', command]);
    const { status } = await spawn('qemu-io', ['-f', 'qcow2', ...args, name], here.directory);
    expect(status).not.toBe(0);
    expect(JSON.parse(await here.img('info', '--output=json', name))['dirty-flag']).toBe(true);
  }

  const wanted = Buffer.alloc(2 * MiB);
  wanted.fill(3, 0, 200 * KiB);
  wanted.fill(4, 100 * KiB, 400 * KiB);
  wanted.fill(5, 1 * MiB, 1 * MiB + 9 * KiB);

  it.each(['cluster_size=4k', 'cluster_size=16k,extended_l2=on', 'cluster_size=512,refcount_bits=8'])(
    'reads right, is repaired before it is written, and is sound then: %s (Q-064, Q-232)',
    async (options) => {
      const name = `image-${options.length}`;
      await abandoned(name, options);
      const untouched = readFileSync(here.path(name));
      const reader = await openImage(here.path(name), { format: 'qcow2' });
      expect(firstDifference(await reader.read(0, wanted.length), wanted)).toBeUndefined();
      expect((await reader.info()).dirty).toBe(true);
      await reader.close();
      expect(readFileSync(here.path(name))).toEqual(untouched);

      const events: ImageEvent[] = [];
      const onEvent = (event: ImageEvent) => void events.push(event);
      const image = await openImage(here.path(name), { format: 'qcow2', readOnly: false, onEvent });
      expect(events).toMatchObject([{ type: 'repaired' }]);
      await image.write(5, new Uint8Array(10).fill(9));
      await image.close();
      expect(faultsOf(await here.check(name))).toEqual(NONE);
      expect(JSON.parse(await here.img('info', '--output=json', name))['dirty-flag']).toBe(false);
      const bytes = Buffer.from(wanted);
      bytes.fill(9, 5, 15);
      expect(firstDifference(await here.bytes(name, 'qcow2', 0, bytes.length), bytes)).toBeUndefined();
    },
  );

  it('is left dirty by our own writer until it is closed, as QEMU sees it', async () => {
    await here.img('create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on', 'ours', '2M');
    const image = await openImage(here.path('ours'), { format: 'qcow2', readOnly: false });
    await image.write(0, new Uint8Array(300 * KiB).fill(1));
    await image.flush();
    copyFileSync(here.path('ours'), here.path('cut'));
    await image.close();
    const dirty = async (name: string): Promise<unknown> =>
      JSON.parse(await here.img('info', '-U', '--output=json', name))['dirty-flag'];
    expect([await dirty('cut'), await dirty('ours')]).toEqual([true, false]);
    // QEMU repairs what was cut off
    await here.io('cut', ['read -P 1 0 300k'], '-f', 'qcow2');
    expect(await dirty('cut')).toBe(false);
    expect(faultsOf(await here.check('cut'))).toEqual(NONE);
    expect(faultsOf(await here.check('ours'))).toEqual(NONE);
  });
});

describeWithQemu('an encrypted image', () => {
  const here = bench('encrypted');

  it.each(['luks', 'aes'])('is refused by name (%s), and its facts are told', async (method) => {
    writeFileSync(here.path('secret'), 'open sesame');
    const secret = ['--object', 'secret,id=s,file=secret'];
    const options = `encrypt.format=${method},encrypt.key-secret=s${method === 'luks' ? ',encrypt.iter-time=10' : ''}`;
    for (let attempt = 1; ; attempt++) {
      const args = ['create', '-q', ...secret, '-f', 'qcow2', '-o', options, method, '1M'];
      const { status, stderr } = await spawn('qemu-img', args, here.directory);
      if (status === 0) break;
      // now and then QEMU is not content with how it measured the processor
      if (attempt === 20 || !stderr.includes('Unable to get accurate CPU usage')) throw new Error(stderr);
    }
    const untouched = readFileSync(here.path(method));
    for (const readOnly of [true, false]) {
      const error = await failureOf(() => openImage(here.path(method), { format: 'qcow2', readOnly }));
      expect(error).toMatchObject({ code: 'ENCRYPTED', reason: 'qcow2.encrypted' });
      expect(error.message).toContain(`encrypted (${method})`);
    }
    const target = here.path('copy.raw');
    const error = await failureOf(() => convertImage(here.path(method), { name: target }, { references: 'allow' }));
    expect(error.message).toContain(`encrypted (${method})`);
    expect(await imageInfo(here.path(method))).toMatchObject({ encrypted: true, virtualSize: MiB });
    const opts = `driver=qcow2,file.filename=${method},encrypt.key-secret=s`;
    const {
      filename: _,
      format: __,
      ...theirs
    } = JSON.parse(await here.img('check', ...secret, '--output=json', '--image-opts', opts)) as Record<string, number>;
    const { result } = await checkImage(here.path(method), { format: 'qcow2' });
    expect(countersOf(result)).toEqual(theirs);
    expect(faultsOf(theirs)).toEqual(NONE);
    expect(readFileSync(here.path(method))).toEqual(untouched);
  });
});

describeWithQemu('an image marked corrupt', () => {
  const here = bench('corrupt');

  it('is read, and refused for writing until check has cleared the mark (Q-063, Q-068)', async () => {
    await here.img('create', '-q', '-f', 'qcow2', 'image', '1M');
    await here.io('image', ['write -P 6 0 100k'], '-f', 'qcow2');
    const bytes = readFileSync(here.path('image'));
    bytes[79] = (bytes[79] as number) | 2;
    writeFileSync(here.path('image'), bytes);
    const error = await failureOf(() => openImage(here.path('image'), { format: 'qcow2', readOnly: false }));
    expect(error).toMatchObject({ code: 'ACCESS', reason: 'qcow2.corrupt' });
    expect(error.message).toContain('marked as corrupt');
    expect(readFileSync(here.path('image'))).toEqual(bytes);
    const reader = await openImage(here.path('image'), { format: 'qcow2' });
    expect(await reader.read(0, 100 * KiB)).toEqual(new Uint8Array(100 * KiB).fill(6));
    await reader.close();
    await checkImage(here.path('image'), { format: 'qcow2', fix: 'all' });
    await (await openImage(here.path('image'), { format: 'qcow2', readOnly: false })).close();
    expect(faultsOf(await here.check('image'))).toEqual(NONE);
  });
});
