import { describe, expect, it } from 'vitest';
import { formatOptionHelp, type OptionsInput, parseOptions, resolveOptions } from '../../../src/base/options.ts';
import { geometryOf } from '../../../src/formats/qcow2/geometry.ts';
import { readHeader } from '../../../src/formats/qcow2/header.ts';
import { createOptions, OVERLAP, openOptions, resolveSettings } from '../../../src/formats/qcow2/options.ts';
import { createInMemory, describeWithQemu, failureOf, qemuImg, scratchDirectory } from './support.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;
const geometry = geometryOf({ clusterBits: 16, extendedL2: false, refcountOrder: 4 });

async function headerOf(size: number, input: Parameters<typeof createInMemory>[1] = {}) {
  const { file } = await createInMemory(size, input);
  return await readHeader(file, 'x', { readOnly: true, forCheck: false });
}

async function settings(input: OptionsInput<typeof openOptions>, size = GiB, unmap = false) {
  return resolveSettings(resolveOptions(openOptions, input), await headerOf(size), geometry, 'x', unmap);
}

describe('open options', () => {
  it('without any: an L2 cache for the whole disk in cluster-sized slices, four clusters of refcounts, cached overlap checks (M-24, Q-071, Q-072, Q-073, Q-074, Q-080)', async () => {
    expect(await settings({})).toEqual({
      lazyRefcounts: false,
      discardNoUnref: false,
      passDiscard: { request: false, snapshot: true, other: false },
      overlapCheck:
        OVERLAP.mainHeader |
        OVERLAP.activeL1 |
        OVERLAP.activeL2 |
        OVERLAP.refcountBlock |
        OVERLAP.refcountTable |
        OVERLAP.snapshotTable |
        OVERLAP.inactiveL1 |
        OVERLAP.bitmapDirectory,
      l2CacheSize: 128 * KiB,
      l2SliceSize: 64 * KiB,
      refcountCacheSize: 256 * KiB,
      cacheCleanIntervalSeconds: 600,
    });
  });

  it('with a disk beyond 32 MiB of L2 tables: 4 KiB slices (Q-080)', async () => {
    expect(await settings({}, 1024 * GiB)).toMatchObject({ l2CacheSize: 32 * MiB, l2SliceSize: 4 * KiB });
  });

  it.each([
    [{ cacheSize: 1 * MiB }, { l2CacheSize: 128 * KiB, refcountCacheSize: 896 * KiB }],
    [{ cacheSize: 300 * KiB }, { l2CacheSize: 44 * KiB, refcountCacheSize: 256 * KiB, l2SliceSize: 4 * KiB }],
    [
      { cacheSize: 1 * MiB, l2CacheSize: 512 * KiB },
      { l2CacheSize: 128 * KiB, refcountCacheSize: 896 * KiB },
    ],
    [
      { cacheSize: 1 * MiB, refcountCacheSize: 512 * KiB },
      { l2CacheSize: 512 * KiB, refcountCacheSize: 512 * KiB },
    ],
    [{ l2CacheSize: 1 }, { l2CacheSize: 8 * KiB, l2SliceSize: 4 * KiB }],
    [{ l2CacheEntrySize: 512 }, { l2SliceSize: 512, l2CacheSize: 128 * KiB }],
    [{ refcountCacheSize: 2 * MiB }, { refcountCacheSize: 2 * MiB }],
    [
      { passDiscardOther: true, passDiscardSnapshot: false },
      { passDiscard: { request: false, snapshot: false, other: true } },
    ],
    [{ overlapCheck: 'none' }, { overlapCheck: 0 }],
    [{ overlapCheckTemplate: 'none', overlapInactiveL2: true }, { overlapCheck: OVERLAP.inactiveL2 }],
    [
      { overlapCheck: 'all', overlapCheckTemplate: 'all', overlapMainHeader: false },
      { overlapCheck: 511 - OVERLAP.mainHeader },
    ],
    [{ cacheCleanInterval: 0 }, { cacheCleanIntervalSeconds: 0 }],
    [{ lazyRefcounts: true }, { lazyRefcounts: true }],
  ] as const)('%j come to %j (Q-075, Q-076, Q-079, Q-081)', async (input, expected) => {
    expect(await settings(input)).toMatchObject(expected);
  });

  it('pass guest discards on when the node gets any', async () => {
    expect((await settings({}, GiB, true)).passDiscard.request).toBe(true);
    expect((await settings({ passDiscardRequest: false }, GiB, true)).passDiscard.request).toBe(false);
  });

  it('take lazy refcounts from the header (Q-070)', async () => {
    const options = resolveOptions(openOptions, {});
    expect(
      resolveSettings(options, await headerOf(GiB, { lazyRefcounts: true }), geometry, 'x', false).lazyRefcounts,
    ).toBe(true);
  });

  it.each([
    [{ cacheSize: 3, l2CacheSize: 1, refcountCacheSize: 1 }, 'qcow2.cache-sizes-all'],
    [{ cacheSize: MiB, l2CacheSize: 2 * MiB }, 'qcow2.l2-cache-size'],
    [{ cacheSize: MiB, refcountCacheSize: 2 * MiB }, 'qcow2.refcount-cache-size'],
    [{ l2CacheEntrySize: 256 }, 'qcow2.l2-cache-entry-size'],
    [{ l2CacheEntrySize: 128 * KiB }, 'qcow2.l2-cache-entry-size'],
    [{ l2CacheEntrySize: 5000 }, 'qcow2.l2-cache-entry-size'],
    [{ cacheSize: 2 ** 50, refcountCacheSize: 0 }, 'qcow2.l2-cache-too-big'],
    [{ refcountCacheSize: 2 ** 50 }, 'qcow2.refcount-cache-too-big'],
    [{ cacheCleanInterval: 2 ** 32 }, 'qcow2.cache-clean-interval'],
    [{ overlapCheck: 'all', overlapCheckTemplate: 'none' }, 'qcow2.overlap-check-conflict'],
  ] as const)('%j are refused as %s (M-24, Q-075, Q-077, Q-078, Q-081)', async (input, reason) => {
    expect(await failureOf(() => settings(input))).toMatchObject({ code: 'OPTION', reason });
  });

  it('refuse lazy refcounts on version 2 (Q-070)', async () => {
    const header = await headerOf(GiB, { compat: 'v2' });
    const options = resolveOptions(openOptions, { lazyRefcounts: true });
    expect((await failureOf(() => resolveSettings(options, header, geometry, 'x', false))).reason).toBe(
      'qcow2.lazy-refcounts',
    );
  });

  it('have the names of QEMU', async () => {
    expect(
      parseOptions(openOptions, [
        ['overlap-check.active-l1', 'off'],
        ['l2-cache-size', '1M'],
      ]),
    ).toEqual({
      overlapActiveL1: false,
      l2CacheSize: MiB,
    });
    expect((await failureOf(() => parseOptions(openOptions, [['overlap-check', 'some']]))).reason).toBe(
      'qcow2.overlap-check',
    );
  });
});

describe('create options', () => {
  it.each([
    ['encryption=on', { encryption: true }],
    ['encrypt.format=luks', { encryptFormat: 'luks' }],
    ['encrypt.key-secret=sec0', { encryptKeySecret: 'sec0' }],
    ['encrypt.iter-time=10', { encryptIterTime: 10 }],
    ['encrypt.cipher-alg=aes-256', { encryptCipherAlg: 'aes-256' }],
    ['encrypt.cipher-mode=xts', { encryptCipherMode: 'xts' }],
    ['encrypt.ivgen-alg=plain64', { encryptIvgenAlg: 'plain64' }],
    ['encrypt.ivgen-hash-alg=sha256', { encryptIvgenHashAlg: 'sha256' }],
    ['encrypt.hash-alg=sha256', { encryptHashAlg: 'sha256' }],
  ])('have the name that QEMU has for %s (M-14)', (pair, option) => {
    expect(parseOptions(createOptions, [pair.split('=') as [string, string]])).toEqual(option);
  });

  it('take both spellings of the version (Q-134)', () => {
    expect(parseOptions(createOptions, [['compat', '0.10']])).toEqual({ compat: 'v2' });
    expect(parseOptions(createOptions, [['compat', 'v3']])).toEqual({ compat: 'v3' });
  });
});

describeWithQemu('create options', () => {
  const directory = scratchDirectory();

  it('have the names, types and help of qemu-img, encryption left out (Q-130)', () => {
    const parse = (lines: readonly string[]) =>
      lines.flatMap((line) => {
        const match = /^ {2}(\S+)=<(.*?)> +- (.*)$/.exec(line);
        return match === null || match[1]?.startsWith('encr') === true ? [] : [match.slice(1)];
      });
    const theirs = parse(qemuImg(directory, 'create', '-f', 'qcow2', '-o', 'help').split('\n'));
    expect(parse(formatOptionHelp(createOptions)).filter(([name]) => name !== 'keep_data_file')).toEqual(theirs);
    expect(theirs.length).toBeGreaterThan(10);
  });
});
