/** Sectors by one key: what callers are promised whatever the mode, old qcow2's encryption, and the engine's transform. */
import { createCipheriv, createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { DataTransform } from '../../src/core/format.ts';
import type { CipherMode, SectorCipherSpec } from '../../src/crypto/algorithms.ts';
import { masterKeyBytes } from '../../src/crypto/algorithms.ts';
import type { CryptoProvider } from '../../src/crypto/provider.ts';
import { createLegacyAesCipher, createSectorCipher, sectorTransform } from '../../src/crypto/sector-cipher.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { SUBJECT, seeded, unhex, utf8 } from './support.ts';

const MODES: readonly CipherMode[] = ['xts', 'cbc', 'ctr', 'ecb'];

function specOf(mode: CipherMode, more: Partial<SectorCipherSpec> = {}): SectorCipherSpec {
  return { cipher: 'aes', cipherKeyBytes: 32, mode, ivGenerator: 'plain64', ...more };
}

function cipherOf(spec: SectorCipherSpec, seed = 1) {
  return createSectorCipher(spec, seeded(masterKeyBytes(spec), seed), nodeCrypto, SUBJECT);
}

/** The same by OpenSSL, one sector after the other. */
function reference(spec: SectorCipherSpec, key: Uint8Array, plain: Uint8Array, first: number): Uint8Array {
  const into = new Uint8Array(plain.length);
  for (let at = 0; at < plain.length; at += 512) {
    let iv = Buffer.alloc(16);
    const number = BigInt(first + at / 512);
    iv.writeBigUInt64LE(spec.ivGenerator === 'plain' ? number & 0xffff_ffffn : number);
    if (spec.ivGenerator === 'essiv') {
      const salt = createHash(spec.ivHash as string)
        .update(key)
        .digest();
      iv = createCipheriv(`aes-${salt.length * 8}-ecb`, salt, null)
        .setAutoPadding(false)
        .update(iv);
    }
    const name = `aes-${spec.cipherKeyBytes * 8}-${spec.mode}`;
    const one = createCipheriv(name, key, spec.mode === 'ecb' ? null : iv);
    into.set(one.update(plain.subarray(at, at + 512)), at);
  }
  return into;
}

describe('createSectorCipher', () => {
  it('makes in every mode, with every vector, what OpenSSL makes sector by sector', () => {
    const specs = fc.record({
      mode: fc.constantFrom(...MODES),
      cipherKeyBytes: fc.constantFrom(16, 32),
      iv: fc.constantFrom(
        { ivGenerator: 'plain' as const },
        { ivGenerator: 'plain64' as const },
        { ivGenerator: 'essiv' as const, ivHash: 'sha256' },
        { ivGenerator: 'essiv' as const, ivHash: 'md5' },
      ),
      sectors: fc.constantFrom(1, 2, 7, 128, 129, 260),
      first: fc.oneof(fc.nat(1000), fc.constantFrom(2 ** 32 - 3, 2 ** 40, 2 ** 53 - 300)),
      seed: fc.nat(1000),
    });
    fc.assert(
      fc.property(specs, ({ mode, cipherKeyBytes, iv, sectors, first, seed }) => {
        const spec = specOf(mode, { cipherKeyBytes, ...iv });
        const key = seeded(masterKeyBytes(spec), seed);
        const plain = seeded(sectors * 512, seed + 1);
        const into = new Uint8Array(plain.length);
        const cipher = createSectorCipher(spec, key, nodeCrypto, SUBJECT);
        cipher.encrypt(plain, into, first);
        expect(into).toEqual(reference(spec, key, plain, first));
        cipher.decrypt(into, first);
        expect(into).toEqual(plain);
      }),
      { numRuns: 60 },
    );
  });

  it.each(MODES)('encrypts a long buffer in %s as it encrypts each of its sectors', (mode) => {
    const cipher = cipherOf(specOf(mode));
    const plain = seeded(1100 * 512);
    const whole = new Uint8Array(plain.length);
    cipher.encrypt(plain, whole, 9);
    const each = new Uint8Array(plain.length);
    for (let i = 0; i < 1100; i++) {
      cipher.encrypt(plain.subarray(i * 512, (i + 1) * 512), each.subarray(i * 512, (i + 1) * 512), 9 + i);
    }
    expect(each).toEqual(whole);
    for (let i = 0; i < 1100; i++) cipher.decrypt(each.subarray(i * 512, (i + 1) * 512), 9 + i);
    expect(each).toEqual(plain);
  });

  it.each(MODES)('works in %s on buffers that begin at any byte', (mode) => {
    const cipher = cipherOf(specOf(mode));
    const length = 200 * 512;
    const plain = seeded(length);
    const expected = new Uint8Array(length);
    cipher.encrypt(plain, expected, 3);
    for (const shift of [0, 1, 2, 3, 4, 7]) {
      const from = new Uint8Array(length + 16).subarray(shift, shift + length);
      from.set(plain);
      for (const other of [0, 1, 4]) {
        const around = new Uint8Array(length + 16).fill(0xee);
        const into = around.subarray(other, other + length);
        cipher.encrypt(from, into, 3);
        expect(into, `from ${shift} into ${other}`).toEqual(expected);
        expect([...around.subarray(0, other), ...around.subarray(other + length)].every((b) => b === 0xee)).toBe(true);
      }
      cipher.encrypt(from, from, 3);
      expect(from, `at ${shift} in place`).toEqual(expected);
      cipher.decrypt(from, 3);
      expect(from, `at ${shift} back`).toEqual(plain);
    }
  });

  it.each(MODES)('never writes the buffer that it encrypts in %s', (mode) => {
    const cipher = cipherOf(specOf(mode));
    for (const shift of [0, 1]) {
      const from = new Uint8Array(300 * 512 + 1).subarray(shift, shift + 300 * 512);
      from.set(seeded(from.length));
      const before = from.slice();
      cipher.encrypt(from, new Uint8Array(from.length), 0);
      expect(from).toEqual(before);
    }
  });

  it.each(MODES)('works in %s on shared memory', (mode) => {
    const cipher = cipherOf(specOf(mode));
    const plain = seeded(130 * 512);
    const expected = new Uint8Array(plain.length);
    cipher.encrypt(plain, expected, 1);
    const shared = new Uint8Array(new SharedArrayBuffer(plain.length));
    shared.set(plain);
    const into = new Uint8Array(new SharedArrayBuffer(plain.length));
    cipher.encrypt(shared, into, 1);
    expect(into.slice()).toEqual(expected);
    cipher.decrypt(into, 1);
    expect(into.slice()).toEqual(plain);
  });

  it('does nothing with nothing', () => {
    const cipher = cipherOf(specOf('xts'));
    cipher.encrypt(new Uint8Array(0), new Uint8Array(0), 0);
    cipher.decrypt(new Uint8Array(0), 0);
  });

  it('encrypts nothing but whole sectors with numbers that are whole', () => {
    const cipher = cipherOf(specOf('xts'));
    const internal = expect.objectContaining({ code: 'INTERNAL' });
    expect(() => cipher.encrypt(new Uint8Array(511), new Uint8Array(511), 0)).toThrow(internal);
    expect(() => cipher.encrypt(new Uint8Array(512), new Uint8Array(1024), 0)).toThrow(internal);
    expect(() => cipher.decrypt(new Uint8Array(513), 0)).toThrow(internal);
    expect(() => cipher.decrypt(new Uint8Array(512), -1)).toThrow(internal);
    expect(() => cipher.decrypt(new Uint8Array(512), 0.5)).toThrow(internal);
    expect(() => cipher.decrypt(new Uint8Array(1024), Number.MAX_SAFE_INTEGER - 1)).toThrow(internal);
    expect(() => createSectorCipher(specOf('xts'), seeded(32), nodeCrypto, SUBJECT)).toThrow(internal);
  });

  it('keeps no hold on the key that it was given, and none at all once it is wiped', () => {
    const spec = specOf('cbc', { ivGenerator: 'essiv', ivHash: 'sha256' });
    const key = seeded(32);
    const cipher = createSectorCipher(spec, key, nodeCrypto, SUBJECT);
    const first = new Uint8Array(512);
    cipher.encrypt(new Uint8Array(512), first, 0);
    key.fill(0);
    const second = new Uint8Array(512);
    cipher.encrypt(new Uint8Array(512), second, 0);
    expect(second).toEqual(first);
    cipher.wipe();
    cipher.wipe();
    expect(() => cipher.encrypt(new Uint8Array(512), second, 0)).toThrow(expect.objectContaining({ code: 'CLOSED' }));
    expect(() => cipher.decrypt(second, 0)).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  });

  it('wipes every key that it made, and what it made them of', () => {
    const ciphers: { wiped: boolean }[] = [];
    const digests: Uint8Array[] = [];
    const watched: CryptoProvider = {
      ...nodeCrypto,
      blockCipher: (name, key) => {
        const cipher = nodeCrypto.blockCipher(name, key);
        if (cipher === undefined) return undefined;
        const entry = { wiped: false };
        ciphers.push(entry);
        return {
          encrypt: (blocks) => cipher.encrypt(blocks),
          decrypt: (blocks) => cipher.decrypt(blocks),
          wipe: () => {
            entry.wiped = true;
          },
        };
      },
      digest: (hash, parts) => {
        const digest = nodeCrypto.digest(hash, parts);
        digests.push(digest);
        return digest;
      },
    };
    const spec = specOf('xts', { ivGenerator: 'essiv', ivHash: 'sha256' });
    const cipher = createSectorCipher(spec, seeded(64), watched, SUBJECT);
    expect(digests.map((digest) => digest.every((byte) => byte === 0))).toEqual([true]);
    expect(ciphers).toEqual([{ wiped: false }, { wiped: false }, { wiped: false }]);
    cipher.wipe();
    expect(ciphers).toEqual([{ wiped: true }, { wiped: true }, { wiped: true }]);
  });

  it.each([
    ['serpent', 32, 'serpent-256'],
    ['twofish', 16, 'twofish-128'],
    ['cast5', 16, 'cast5-128'],
  ])('refuses %s with %i bytes by its name', (cipher, cipherKeyBytes, name) => {
    const spec = specOf('cbc', { cipher, cipherKeyBytes });
    expect(() => cipherOf(spec)).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED', reason: 'luks.cipher', details: { cipher: name } }),
    );
  });

  it('refuses by name what the runtime does not have', () => {
    const poor = { ...nodeCrypto, blockCipher: () => undefined };
    expect(() => createSectorCipher(specOf('xts'), seeded(64), poor, SUBJECT)).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED', reason: 'luks.cipher', details: { cipher: 'aes-256' } }),
    );
  });
});

describe('createLegacyAesCipher', () => {
  /** The first sector of qcow2's old encryption by its definition. */
  function expected(key: string, plain: Uint8Array, sector: number): Uint8Array {
    const iv = Buffer.alloc(16);
    iv.writeBigUInt64LE(BigInt(sector));
    return new Uint8Array(createCipheriv('aes-128-cbc', unhex(key), iv).update(plain).subarray(0, plain.length));
  }

  it.each([
    ['', '00'.repeat(16)],
    ['abc', `616263${'00'.repeat(13)}`],
    ['0123456789abcdef', '30313233343536373839616263646566'],
    ['0123456789abcdefg', '30313233343536373839616263646566'],
    ['päss', `70c3a47373${'00'.repeat(11)}`],
  ])('makes a key of the password "%s"', (password, key) => {
    const plain = seeded(512);
    const into = new Uint8Array(512);
    createLegacyAesCipher(utf8(password), nodeCrypto, SUBJECT).encrypt(plain, into, 2 ** 33 + 5);
    expect(into).toEqual(expected(key, plain, 2 ** 33 + 5));
  });

  it('decrypts with another password to something else', () => {
    const plain = seeded(1024);
    const into = new Uint8Array(1024);
    createLegacyAesCipher(utf8('right'), nodeCrypto, SUBJECT).encrypt(plain, into, 0);
    createLegacyAesCipher(utf8('wrong'), nodeCrypto, SUBJECT).decrypt(into, 0);
    expect(into).not.toEqual(plain);
  });
});

describe('sectorTransform', () => {
  it.each(['guest', 'host'] as const)('is what the engine wants, counting sectors by the %s', (tweak) => {
    const cipher = cipherOf(specOf('xts'));
    const transform: DataTransform = sectorTransform(cipher, tweak);
    expect(transform.sector).toBe(512);
    expect(transform.tweak).toBe(tweak);
    const plain = seeded(1024);
    const into = new Uint8Array(1024);
    const at = 2 ** 41 + 512;
    expect(transform.encrypt(plain, into, at)).toBeUndefined();
    const direct = new Uint8Array(1024);
    cipher.encrypt(plain, direct, at / 512);
    expect(into).toEqual(direct);
    expect(transform.decrypt(into, at)).toBeUndefined();
    expect(into).toEqual(plain);
  });
});
