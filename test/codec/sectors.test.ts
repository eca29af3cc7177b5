/** Disk encryption in bulk: the same bytes for every number of workers, wherever the buffers lie, and keys that are gone when they are closed. */
import { afterEach, describe, expect, it } from 'vitest';
import type { Codecs } from '../../src/codec/codecs.ts';
import { type CodecsOptions, createCodecs } from '../../src/codec/create.ts';
import { masterKeyBytes, type SectorCipherSpec } from '../../src/crypto/algorithms.ts';
import { type BulkSectors, ThreadCiphers } from '../../src/crypto/bulk.ts';
import { createSectorCipher, sectorTransform } from '../../src/crypto/sector-cipher.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { SUBJECT, seeded } from '../crypto/support.ts';

const MiB = 2 ** 20;

const SPECS: readonly SectorCipherSpec[] = [
  { cipher: 'aes', cipherKeyBytes: 32, mode: 'xts', ivGenerator: 'plain64' },
  { cipher: 'aes', cipherKeyBytes: 16, mode: 'cbc', ivGenerator: 'essiv', ivHash: 'sha256' },
  { cipher: 'aes', cipherKeyBytes: 24, mode: 'ctr', ivGenerator: 'plain' },
  { cipher: 'aes', cipherKeyBytes: 16, mode: 'ecb', ivGenerator: 'plain64' },
];

const open: Codecs[] = [];
let threads = 0;
process.on('worker', () => threads++);

afterEach(async () => {
  await Promise.all(open.splice(0).map((made) => made.close()));
  threads = 0;
});

function codecs(options: CodecsOptions): Codecs {
  const made = createCodecs(options);
  open.push(made);
  return made;
}

function shared(length: number): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(length));
}

/** Works until the threads run: what is done before that, is done here. @returns false where there are none */
async function warm(bulk: BulkSectors | undefined): Promise<boolean> {
  const sink = shared(2 * MiB);
  for (let i = 0; bulk !== undefined && i < 10_000; i++) {
    const away = bulk.decrypt(sink, 0);
    if (away !== undefined) {
      await away;
      return true;
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return false;
}

async function transformOf(options: CodecsOptions, spec: SectorCipherSpec, key: Uint8Array) {
  const bulk = codecs(options).sectors(spec, key);
  const transform = sectorTransform(createSectorCipher(spec, key, nodeCrypto, SUBJECT), 'guest', bulk);
  return { transform, bulk };
}

describe.each(SPECS)('$cipher with $cipherKeyBytes bytes, $mode, $ivGenerator', (spec) => {
  const key = seeded(masterKeyBytes(spec), 3);
  const plain = seeded(5 * MiB + 3 * 512, 4);
  const wanted = new Uint8Array(plain.length);
  createSectorCipher(spec, key, nodeCrypto, SUBJECT).encrypt(plain, wanted, 77);

  it.each([0, 1, 2, 7])('gives the same bytes with %i workers and random delays', async (workers) => {
    const { transform, bulk } = await transformOf({ workers, delayMs: 3 }, spec, key);
    expect(await warm(bulk)).toBe(workers > 0);
    const mine = shared(plain.length);
    mine.set(plain);
    for (const from of [plain, mine]) {
      for (const into of [new Uint8Array(plain.length), shared(plain.length)]) {
        await transform.encrypt(from, into, 77 * 512);
        expect(Buffer.compare(into, wanted)).toBe(0);
        await transform.decrypt(into, 77 * 512);
        expect(Buffer.compare(into, plain)).toBe(0);
      }
      expect(Buffer.compare(from, plain)).toBe(0);
    }
    await bulk?.close();
  });
});

describe('bulk encryption', () => {
  const [spec] = SPECS as [SectorCipherSpec];
  const key = seeded(64, 3);

  it('starts no threads for little, and does small buffers at once even when they run', async () => {
    const { transform, bulk } = await transformOf({ workers: 2 }, spec, key);
    expect(transform.decrypt(new Uint8Array(4 * MiB), 0)).toBeUndefined();
    expect(threads).toBe(0);
    expect(transform.decrypt(new Uint8Array(8 * MiB), 0)).toBeUndefined();
    expect(await warm(bulk)).toBe(true);
    expect(threads).toBe(2);
    expect(transform.decrypt(new Uint8Array(64 * 1024), 0)).toBeUndefined();
    const away = transform.decrypt(new Uint8Array(MiB), 0);
    expect(away).toBeInstanceOf(Promise);
    await away;
  });

  it('keeps two keys of one set of threads apart', async () => {
    const other = seeded(64, 9);
    const made = codecs({ workers: 2 });
    const results = [];
    for (const one of [key, other, key]) {
      const bulk = made.sectors(spec, one);
      await warm(bulk);
      const into = shared(3 * MiB);
      await bulk?.encrypt(into, into, 0);
      const here = new Uint8Array(into.length);
      createSectorCipher(spec, one, nodeCrypto, SUBJECT).encrypt(here, here, 0);
      results.push(Buffer.compare(into, here));
      await bulk?.close();
    }
    expect(results).toEqual([0, 0, 0]);
  });

  it('may be closed while its threads start', async () => {
    const made = codecs({ workers: 2 });
    const bulk = made.sectors(spec, key);
    expect(bulk?.decrypt(new Uint8Array(9 * MiB), 0)).toBeUndefined();
    await bulk?.close();
    await made.close();
  });

  it('may be closed twice, before any thread runs, and after all of them ended', async () => {
    const made = codecs({ workers: 1 });
    const early = made.sectors(spec, key);
    await early?.close();
    await early?.close();
    const late = made.sectors(spec, key);
    await warm(late);
    await made.close();
    await late?.close();
  });
});

describe('the ciphers of a thread', () => {
  it('take a key from shared memory once, and need it again after they have forgotten it', () => {
    const [spec] = SPECS as [SectorCipherSpec];
    const ciphers = new ThreadCiphers(nodeCrypto);
    const key = shared(64);
    key.set(seeded(64, 3));
    const run = (): Uint8Array => {
      const into = new Uint8Array(512);
      ciphers.run({ id: 1, spec, key, encrypt: true, from: into, into, firstSector: 5 });
      return into;
    };
    const first = run();
    key.fill(0);
    expect(run()).toEqual(first);
    ciphers.forget(1);
    expect(run()).not.toEqual(first);
    ciphers.forget(1);
    ciphers.forget(2);
  });
});
