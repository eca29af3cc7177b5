/** New volumes: their layout, their order on disk, and what is refused before anything is written. */
import { describe, expect, it } from 'vitest';
import { createLuks, planLuks } from '../../src/crypto/create-luks.ts';
import { openLuks } from '../../src/crypto/luks.ts';
import type { CryptoProvider } from '../../src/crypto/provider.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { MemoryArea, quickCrypto, SUBJECT, utf8 } from './support.ts';

const PASSPHRASE = utf8('secret');
const BASE = { subject: SUBJECT, passphrase: PASSPHRASE, iterTime: 0 } as const;

describe('planLuks', () => {
  it.each([
    [{}, 2_068_480],
    [{ cipherAlg: 'aes-128' }, 1_052_672],
    [{ cipherAlg: 'aes-192' }, 1_544_192],
    [{ cipherAlg: 'aes-128', cipherMode: 'cbc' }, 528_384],
    [{ cipherAlg: 'aes-256', cipherMode: 'cbc' }, 1_052_672],
  ])('of %j has its payload at byte %i', (options, headerBytes) => {
    expect(planLuks(options, SUBJECT).headerBytes).toBe(headerBytes);
  });
});

describe('createLuks', () => {
  it('makes what QEMU makes by default', async () => {
    const area = new MemoryArea(2_068_480);
    const { volume } = await createLuks(area, quickCrypto(), BASE);
    expect(volume.info()).toEqual({
      'cipher-alg': 'aes-256',
      'cipher-mode': 'xts',
      'ivgen-alg': 'plain64',
      'hash-alg': 'sha256',
      uuid: expect.stringMatching(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/),
      'payload-offset': 2_068_480,
      'master-key-iters': 1000,
      slots: [
        { active: true, 'key-offset': 4096, iters: 1000, stripes: 4000 },
        ...[1, 2, 3, 4, 5, 6, 7].map((i) => ({ active: false, 'key-offset': 4096 + i * 258_048 })),
      ],
    });
    const opened = await openLuks(area, nodeCrypto, { subject: SUBJECT });
    expect(opened.header).toEqual(volume.header);
    expect(opened.info()).toEqual(volume.info());
  });

  it('tells the hash of essiv, and of no other IV generator', async () => {
    const area = new MemoryArea(2_068_480);
    const essiv = await createLuks(area, quickCrypto(), { ...BASE, ivgenAlg: 'essiv' });
    expect(essiv.volume.info()).toMatchObject({ 'ivgen-alg': 'essiv', 'ivgen-hash-alg': 'sha256' });
    const plain = await createLuks(area, quickCrypto(), { ...BASE, ivgenHashAlg: 'sha1' });
    expect(plain.volume.info()).not.toHaveProperty('ivgen-hash-alg');
  });

  it('writes the header last', async () => {
    const area = new MemoryArea(2_068_480);
    await createLuks(area, quickCrypto(), BASE);
    expect(area.log).toEqual(['write 4096+256000', 'flush', 'write 0+4096', 'flush']);
  });

  it('makes a detached header, which says nothing of a payload', async () => {
    const area = new MemoryArea(2_068_480);
    const { volume } = await createLuks(area, quickCrypto(), { ...BASE, detached: true });
    expect(volume.payloadOffset).toBe(0);
    const opened = await openLuks(area, nodeCrypto, { subject: SUBJECT, detached: true });
    expect((await opened.unlock(PASSPHRASE)).slot).toBe(0);
    await expect(openLuks(area, nodeCrypto, { subject: SUBJECT })).rejects.toMatchObject({ reason: 'luks.payload' });
  });

  it('takes everything random from the source that it is given, and nothing twice', async () => {
    const make = async () => {
      let state = 1;
      const counting: CryptoProvider = {
        ...quickCrypto(),
        fillRandom: (into) => {
          for (let i = 0; i < into.length; i++) {
            state = (state * 48_271) % 2_147_483_647;
            into[i] = state % 256;
          }
        },
      };
      const area = new MemoryArea(2_068_480);
      const { key } = await createLuks(area, counting, BASE);
      return { bytes: area.bytes, key: key.bytes };
    };
    const first = await make();
    expect((await make()).bytes).toEqual(first.bytes);
    const salts = [
      first.bytes.slice(132, 164),
      first.bytes.slice(216, 248),
      first.key.slice(0, 32),
      first.key.slice(32),
    ];
    expect(new Set(salts.map((salt) => salt.join())).size).toBe(4);
    const real = await Promise.all([1, 2].map(() => createLuks(new MemoryArea(2_068_480), quickCrypto(), BASE)));
    expect(real[0]?.key.bytes).not.toEqual(real[1]?.key.bytes);
    expect(real[0]?.volume.header.uuid).not.toBe(real[1]?.volume.header.uuid);
  });

  it('measures how many iterations fill the time, an eighth of it for the digest', async () => {
    let now = 0;
    const machine: CryptoProvider = {
      ...nodeCrypto,
      now: () => now,
      pbkdf2: async (hash, password, salt, iterations, length) => {
        now += iterations / (length === 20 ? 5000 : 2500);
        return nodeCrypto.pbkdf2(hash, password, salt, 1, length);
      },
    };
    const { volume } = await createLuks(new MemoryArea(2_068_480), machine, { ...BASE, iterTime: undefined });
    expect(volume.header.slots[0]?.iterations).toBe(5_000_000);
    expect(volume.header.digestIterations).toBe(1_250_000);
  });

  it.each([
    [{ cipherAlg: 'serpent-256' }, 'UNSUPPORTED', 'luks.cipher'],
    [{ cipherAlg: 'twofish-128', cipherMode: 'cbc' }, 'UNSUPPORTED', 'luks.cipher'],
    [{ cipherAlg: 'aes-192', cipherMode: 'cbc' }, 'UNSUPPORTED', 'luks.key-bytes'],
    [{ cipherAlg: 'aes-192', cipherMode: 'ctr' }, 'UNSUPPORTED', 'luks.key-bytes'],
    [{ iterTime: -5 }, 'OPTION', 'luks.iter-time'],
    [{ hashAlg: 'sha0' }, 'UNSUPPORTED', 'luks.hash'],
  ])('refuses %j and writes nothing', async (options, code, reason) => {
    const area = new MemoryArea(2_068_480);
    await expect(createLuks(area, quickCrypto(), { ...BASE, ...options })).rejects.toMatchObject({ code, reason });
    expect(area.log).toEqual([]);
  });

  it('leaves no master key behind when it fails', async () => {
    const filled: Uint8Array[] = [];
    const watched: CryptoProvider = {
      ...quickCrypto(),
      fillRandom: (into) => {
        nodeCrypto.fillRandom(into);
        filled.push(into);
      },
    };
    const area = new MemoryArea(2_068_480);
    area.write = async () => {
      throw new Error('the disk is full');
    };
    await expect(createLuks(area, watched, BASE)).rejects.toThrow('the disk is full');
    const [key] = filled;
    expect(key?.length).toBe(64);
    expect(key?.every((byte) => byte === 0)).toBe(true);
  });

  it('refuses a place that is too small for its first slot', async () => {
    const area = new MemoryArea(4096);
    await expect(createLuks(area, quickCrypto(), BASE)).rejects.toMatchObject({ reason: 'luks.truncated' });
    expect(area.log).toEqual([]);
  });
});
