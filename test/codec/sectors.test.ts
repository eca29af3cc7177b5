/** Disk encryption in bulk: the same bytes for every number of workers, wherever the buffers lie, and keys that are gone when they are closed. */
import { afterEach, describe, expect, it } from 'vitest';
import type { Codecs } from '../../src/codec/codecs.ts';
import { type CodecsOptions, createCodecs } from '../../src/codec/create.ts';
import { masterKeyBytes, type SectorCipherSpec } from '../../src/crypto/algorithms.ts';
import { ThreadCiphers } from '../../src/crypto/bulk.ts';
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

/** A transform whose threads run: what is done before that, is done here. */
async function warm(options: CodecsOptions, spec: SectorCipherSpec, key: Uint8Array) {
  const bulk = codecs(options).sectors(spec, key);
  const cipher = createSectorCipher(spec, key, nodeCrypto, SUBJECT);
  const transform = sectorTransform(cipher, 'guest', bulk);
  const sink = shared(9 * MiB);
  for (let i = 0; i < 2; i++) await transform.encrypt(sink, sink, 0);
  return { transform, bulk };
}

describe.each(SPECS)('$cipher with $cipherKeyBytes bytes, $mode, $ivGenerator', (spec) => {
  const key = seeded(masterKeyBytes(spec), 3);
  const plain = seeded(5 * MiB + 3 * 512, 4);
  const wanted = new Uint8Array(plain.length);
  createSectorCipher(spec, key, nodeCrypto, SUBJECT).encrypt(plain, wanted, 77);

  it.each([0, 1, 2, 7])('gives the same bytes with %i workers and random delays', async (workers) => {
    const { transform, bulk } = await warm({ workers, delayMs: 3 }, spec, key);
    expect(bulk === undefined).toBe(workers === 0);
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
    const bulk = codecs({ workers: 2 }).sectors(spec, key);
    const cipher = createSectorCipher(spec, key, nodeCrypto, SUBJECT);
    const transform = sectorTransform(cipher, 'guest', bulk);
    expect(transform.decrypt(new Uint8Array(4 * MiB), 0)).toBeUndefined();
    expect(threads).toBe(0);
    await transform.decrypt(new Uint8Array(32 * MiB), 0);
    expect(threads).toBeGreaterThan(0);
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
      const into = shared(17 * MiB);
      await bulk?.encrypt(into, into, 0);
      const here = new Uint8Array(into.length);
      createSectorCipher(spec, one, nodeCrypto, SUBJECT).encrypt(here, here, 0);
      results.push(Buffer.compare(into, here));
      await bulk?.close();
    }
    expect(results).toEqual([0, 0, 0]);
  });

  it('may be closed twice, before any thread runs, and after all of them ended', async () => {
    const made = codecs({ workers: 1 });
    const early = made.sectors(spec, key);
    await early?.close();
    await early?.close();
    const late = made.sectors(spec, key);
    await late?.decrypt(new Uint8Array(17 * MiB), 0);
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
