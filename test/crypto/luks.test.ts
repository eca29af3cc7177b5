/** A volume's key slots: unlocked, added, erased; the order in which that is stored; and what a header may cost. */
import { describe, expect, it } from 'vitest';
import { isBlockError } from '../../src/base/errors.ts';
import { chooseAlgorithms, masterKeyBytes } from '../../src/crypto/algorithms.ts';
import { type CreateLuksOptions, createLuks } from '../../src/crypto/create-luks.ts';
import { digestOf, sealSlot } from '../../src/crypto/key-slot.ts';
import { type LuksVolume, openLuks } from '../../src/crypto/luks.ts';
import { emptySlots, encodeLuksHeader, encodeLuksSlot, luksHeaderArea } from '../../src/crypto/luks-header.ts';
import type { CryptoProvider } from '../../src/crypto/provider.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { MemoryArea, quickCrypto, SUBJECT, seeded, utf8 } from './support.ts';

const SECRET = utf8('correct horse');
const OTHER = utf8('battery staple');
const STRIDE = 258_048;
const AREA = 4096 + 8 * STRIDE;
const PROVIDER = quickCrypto();
const QUICK = { iterTime: 0 } as const;

async function create(options: Partial<CreateLuksOptions> = {}, area = new MemoryArea(AREA), provider = PROVIDER) {
  const made = await createLuks(area, provider, { subject: SUBJECT, passphrase: SECRET, ...QUICK, ...options });
  return { area, ...made };
}

function open(area: MemoryArea, provider = PROVIDER): Promise<LuksVolume> {
  return openLuks(area, provider, { subject: SUBJECT });
}

function activeSlots(volume: LuksVolume): number[] {
  return volume.header.slots.flatMap(({ active }, i) => (active ? [i] : []));
}

const failure = (code: string, reason: string, details = {}) => ({ code, reason, details });

/** The slot that a passphrase opens, or the reason why it opens none. */
async function opens(volume: LuksVolume, passphrase: Uint8Array): Promise<number | string | undefined> {
  try {
    return (await volume.unlock(passphrase)).slot;
  } catch (error) {
    if (!isBlockError(error)) throw error;
    return error.reason;
  }
}

describe('unlock', () => {
  it('gives the master key that the volume was made with, to its password alone', async () => {
    const { area, key } = await create();
    const volume = await open(area);
    const found = await volume.unlock(SECRET);
    expect(found.slot).toBe(0);
    expect(found.bytes).toEqual(key.bytes);
    await expect(volume.unlock(OTHER)).rejects.toMatchObject({
      code: 'ENCRYPTED',
      reason: 'luks.password',
      message: 'luks "test": the password opens no key slot',
    });
    await expect(volume.unlock(new Uint8Array(0))).rejects.toMatchObject({ reason: 'luks.password' });
  });

  it('takes any bytes as a password, none as well', async () => {
    for (const passphrase of [new Uint8Array(0), Uint8Array.of(0), Uint8Array.of(255, 0, 254), seeded(5000)]) {
      const { volume } = await create({ passphrase });
      expect(await opens(volume, passphrase)).toBe(0);
      expect(await opens(volume, SECRET)).toBe('luks.password');
    }
  });

  it('leaves nothing of the keys that it derived', async () => {
    const { area } = await create();
    const derived: Uint8Array[] = [];
    const watched: CryptoProvider = {
      ...nodeCrypto,
      pbkdf2: async (...args) => {
        const key = await nodeCrypto.pbkdf2(...args);
        if (key.length === 64) derived.push(key);
        return key;
      },
    };
    const volume = await open(area, watched);
    const key = await volume.unlock(SECRET);
    expect(await opens(volume, OTHER)).toBe('luks.password');
    expect(derived.length).toBe(2);
    expect(derived.every((bytes) => bytes.every((byte) => byte === 0))).toBe(true);
    expect(key.bytes.every((byte) => byte === 0)).toBe(false);
    key.wipe();
    expect(key.bytes.every((byte) => byte === 0)).toBe(true);
  });

  it('spends no more than it may, and tries the slots that it can pay for', async () => {
    const { area, volume } = await create();
    await volume.addKey({ unlock: SECRET, passphrase: OTHER, ...QUICK });
    // 2^32 - 1 iterations take a quarter of an hour
    encodeLuksSlot({ ...slotOf(volume, 0), iterations: 2 ** 32 - 1 }, 0, area.bytes);
    const hostile = await open(area);
    expect(await opens(hostile, OTHER)).toBe(1);
    await expect(hostile.unlock(SECRET)).rejects.toMatchObject(
      failure('UNSUPPORTED', 'luks.rounds', { slot: 0, rounds: Number.POSITIVE_INFINITY, limit: 2 ** 30 }),
    );
    await expect(hostile.eraseKeys({ passphrase: SECRET })).rejects.toMatchObject({ reason: 'luks.rounds' });
    await expect(hostile.eraseKeys({ slot: 0, passphrase: SECRET })).rejects.toMatchObject({ reason: 'luks.rounds' });
  });

  it('takes a bound from its caller, over all slots together', async () => {
    const { volume } = await create();
    await volume.addKey({ unlock: SECRET, passphrase: OTHER, ...QUICK });
    // 1000 iterations of two digests for the key, of one for the master key's digest
    expect((await volume.unlock(SECRET, { roundLimit: 3000 })).slot).toBe(0);
    await expect(volume.unlock(SECRET, { roundLimit: 2999 })).rejects.toMatchObject(
      failure('UNSUPPORTED', 'luks.rounds', { slot: 0, rounds: 3000, limit: 2999 }),
    );
    await expect(volume.unlock(OTHER, { roundLimit: 5999 })).rejects.toMatchObject({ details: { slot: 1 } });
    expect((await volume.unlock(OTHER, { roundLimit: 6000 })).slot).toBe(1);
  });

  it('is bounded by the digest as well, which every slot has to compute', async () => {
    const { area } = await create();
    new DataView(area.bytes.buffer).setUint32(164, 2 ** 32 - 1);
    await expect((await open(area)).unlock(SECRET)).rejects.toMatchObject({ reason: 'luks.rounds' });
  });

  it('stops between slots when its caller wants no more', async () => {
    const { volume } = await create();
    await volume.addKey({ unlock: SECRET, passphrase: OTHER, ...QUICK });
    const signal = AbortSignal.abort();
    await expect(volume.unlock(OTHER, { signal })).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('says which slot lies past the end of its file', async () => {
    const { area } = await create();
    const cut = await open(new MemoryArea(area.bytes.subarray(0, 4096 + 255_999)));
    await expect(cut.unlock(SECRET)).rejects.toMatchObject(
      failure('CORRUPT', 'luks.truncated', { slot: 0, value: 260_096, bound: 260_095 }),
    );
    await expect(cut.eraseKeys({ slot: 0, force: true })).rejects.toMatchObject({ reason: 'luks.truncated' });
    const exact = await open(new MemoryArea(area.bytes.subarray(0, 4096 + 256_000)));
    expect(await opens(exact, SECRET)).toBe(0);
  });

  it('finds another digest where a bit of the master key is another', async () => {
    const { area } = await create();
    area.bytes[4096 + 100_000] = (area.bytes[4096 + 100_000] as number) ^ 4;
    expect(await opens(await open(area), SECRET)).toBe('luks.password');
  });

  it('opens volumes of 24-byte keys, whose material ends inside a sector, as cryptsetup makes them', async () => {
    const algorithms = chooseAlgorithms({ cipherAlg: 'aes-192', cipherMode: 'cbc' }, SUBJECT);
    const area = new MemoryArea(luksHeaderArea(algorithms));
    const key = seeded(masterKeyBytes(algorithms));
    const slots = emptySlots(algorithms);
    const slot = { active: true, iterations: 1000, salt: seeded(32, 2), materialOffset: 4096 };
    slots[0] = slot;
    const known = { algorithms, digestSalt: seeded(32, 3), digestIterations: 1000 };
    const digest = await digestOf(key, known, PROVIDER);
    const header = { ...known, digest, payloadOffset: area.size, uuid: 'x', slots };
    area.bytes.set(encodeLuksHeader(header));
    const material = await sealSlot(header, slot, key, SECRET, PROVIDER, SUBJECT);
    expect(material.length).toBe(188 * 512);
    area.bytes.set(material, 4096);
    const volume = await open(area);
    expect((await volume.unlock(SECRET)).bytes).toEqual(key);
    await volume.addKey({ unlock: SECRET, passphrase: OTHER, ...QUICK });
    expect(await opens(await open(area), OTHER)).toBe(1);
  });

  it('tells what a serpent volume is, and refuses to open it by that name', async () => {
    const { area } = await create();
    area.bytes.set(utf8('serpent\0'), 8);
    const volume = await open(area);
    expect(volume.info()).toMatchObject({ 'cipher-alg': 'serpent-256', 'cipher-mode': 'xts' });
    const refused = failure('UNSUPPORTED', 'luks.cipher', { cipher: 'serpent-256' });
    await expect(volume.unlock(SECRET)).rejects.toMatchObject(refused);
    await expect(volume.addKey({ unlock: SECRET, passphrase: OTHER })).rejects.toMatchObject(refused);
    await expect(volume.eraseKeys({ passphrase: SECRET })).rejects.toMatchObject(refused);
  });
});

function slotOf(volume: LuksVolume, number: number) {
  const slot = volume.header.slots[number];
  if (slot === undefined) throw new Error(`no slot ${number}`);
  return slot;
}

describe('sectorCipher', () => {
  it('is the same for every password of the volume', async () => {
    const { volume, key } = await create();
    await volume.addKey({ unlock: key, passphrase: OTHER, ...QUICK });
    const plain = seeded(1024);
    const into = new Uint8Array(1024);
    volume.sectorCipher(key).encrypt(plain, into, 77);
    volume.sectorCipher(await volume.unlock(OTHER)).decrypt(into, 77);
    expect(into).toEqual(plain);
  });

  it('takes no key that was wiped, and none of another volume', async () => {
    const { volume, key } = await create();
    const { key: foreign } = await create();
    const refused = failure('INVALID_ARGUMENT', 'luks.foreign-key');
    expect(() => volume.sectorCipher(foreign)).toThrow(expect.objectContaining(refused));
    await expect(volume.addKey({ unlock: foreign, passphrase: OTHER })).rejects.toMatchObject(refused);
    key.wipe();
    expect(() => volume.sectorCipher(key)).toThrow(expect.objectContaining(refused));
    await expect(volume.addKey({ unlock: key, passphrase: OTHER })).rejects.toMatchObject(refused);
    expect(activeSlots(volume)).toEqual([0]);
  });
});

describe('addKey', () => {
  it('fills the first inactive slot, or the one that is named, until all are full', async () => {
    const { area, volume, key } = await create();
    expect(await volume.addKey({ unlock: SECRET, passphrase: OTHER, ...QUICK })).toBe(1);
    expect(await volume.addKey({ unlock: key, passphrase: utf8('7'), slot: 7, ...QUICK })).toBe(7);
    for (let slot = 2; slot < 7; slot++) {
      expect(await volume.addKey({ unlock: key, passphrase: utf8(`${slot}`), ...QUICK })).toBe(slot);
    }
    await expect(volume.addKey({ unlock: key, passphrase: OTHER })).rejects.toMatchObject(
      failure('NO_SPACE', 'luks.slots-full'),
    );
    const again = await open(area);
    expect(activeSlots(again)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(again.header).toEqual(volume.header);
    for (let slot = 2; slot < 8; slot++) {
      const found = await again.unlock(utf8(`${slot}`));
      expect(found).toMatchObject({ slot, bytes: key.bytes });
    }
  });

  it('refuses a slot in use unless it is forced, and slots that do not exist', async () => {
    const { volume } = await create();
    await expect(volume.addKey({ unlock: SECRET, passphrase: OTHER, slot: 0 })).rejects.toMatchObject(
      failure('EXISTS', 'luks.slot-active', { slot: 0 }),
    );
    for (const slot of [-1, 8, 0.5, Number.NaN]) {
      await expect(volume.addKey({ unlock: SECRET, passphrase: OTHER, slot })).rejects.toMatchObject(
        failure('OPTION', 'luks.slot', { slot, bound: 7 }),
      );
    }
    await volume.addKey({ unlock: SECRET, passphrase: OTHER, slot: 0, force: true, ...QUICK });
    expect(await opens(volume, OTHER)).toBe(0);
    expect(await opens(volume, SECRET)).toBe('luks.password');
  });

  it('adds nothing for somebody who cannot open the volume', async () => {
    const { area, volume } = await create();
    const before = area.bytes.slice();
    await expect(volume.addKey({ unlock: OTHER, passphrase: utf8('x') })).rejects.toMatchObject({
      reason: 'luks.password',
    });
    expect(area.bytes).toEqual(before);
  });

  it('has the material durable before the header names it', async () => {
    const { area, volume } = await create();
    area.log.length = 0;
    await volume.addKey({ unlock: SECRET, passphrase: OTHER, slot: 2, ...QUICK });
    expect(area.log).toEqual([`write ${4096 + 2 * STRIDE}+256000`, 'flush', 'write 0+4096', 'flush']);
  });

  it('gives slots to requests made at once one after the other', async () => {
    const { area, volume, key } = await create();
    const added = await Promise.all(
      ['a', 'b', 'c'].map((text) => volume.addKey({ unlock: key, passphrase: utf8(text), ...QUICK })),
    );
    expect(added).toEqual([1, 2, 3]);
    const again = await open(area);
    for (const [i, text] of ['a', 'b', 'c'].entries()) expect(await opens(again, utf8(text))).toBe(i + 1);
  });

  it('leaves bytes of the header that it does not know as they are', async () => {
    const { area } = await create();
    area.bytes.fill(0x77, 592, 4096);
    area.bytes.fill(0x88, 20, 40);
    const volume = await open(area);
    await volume.addKey({ unlock: SECRET, passphrase: OTHER, ...QUICK });
    await volume.eraseKeys({ slot: 0 });
    expect(area.bytes.subarray(592, 4096).every((byte) => byte === 0x77)).toBe(true);
    expect(area.bytes.subarray(20, 40).every((byte) => byte === 0x88)).toBe(true);
  });
});

describe('eraseKeys', () => {
  it('makes a slot useless, header and material, and leaves the others', async () => {
    const { area, volume } = await create();
    await volume.addKey({ unlock: SECRET, passphrase: OTHER, ...QUICK });
    const slot = slotOf(volume, 0);
    const material = area.bytes.slice(4096, 4096 + 256_000);
    const others = area.bytes.slice(4096 + STRIDE);
    expect(await volume.eraseKeys({ slot: 0 })).toEqual([0]);
    expect(slotOf(volume, 0)).toMatchObject({ active: false, iterations: 0, salt: new Uint8Array(32) });
    expect(await opens(volume, SECRET)).toBe('luks.password');
    expect(await opens(volume, OTHER)).toBe(1);
    expect(area.bytes.slice(4096 + STRIDE)).toEqual(others);
    expect(area.bytes.slice(4096, 4096 + 256_000)).not.toEqual(material);
    // not even with the slot's old entry
    encodeLuksSlot(slot, 0, area.bytes);
    expect(await opens(await open(area), SECRET)).toBe('luks.password');
  });

  it('erases every slot that a password opens', async () => {
    const { area, volume, key } = await create();
    await volume.addKey({ unlock: key, passphrase: OTHER, slot: 3, ...QUICK });
    await volume.addKey({ unlock: key, passphrase: SECRET, slot: 5, ...QUICK });
    expect(await volume.eraseKeys({ passphrase: SECRET })).toEqual([0, 5]);
    expect(activeSlots(await open(area))).toEqual([3]);
  });

  it('refuses what would lose the disk, and what makes no sense', async () => {
    const { area, volume, key } = await create();
    await volume.addKey({ unlock: key, passphrase: SECRET, slot: 1, ...QUICK });
    const before = area.bytes.slice();
    const refused = async (options: Parameters<LuksVolume['eraseKeys']>[0], code: string, reason: string) => {
      await expect(volume.eraseKeys(options)).rejects.toMatchObject({ code, reason });
    };
    await refused({}, 'OPTION', 'luks.erase-what');
    await refused({ slot: 8 }, 'OPTION', 'luks.slot');
    await refused({ slot: 2 }, 'INVALID_ARGUMENT', 'luks.slot-inactive');
    await refused({ slot: 1, passphrase: OTHER }, 'ENCRYPTED', 'luks.old-password');
    await refused({ slot: 2, passphrase: SECRET }, 'ENCRYPTED', 'luks.old-password');
    await refused({ passphrase: OTHER }, 'ENCRYPTED', 'luks.no-match');
    await refused({ passphrase: SECRET }, 'INVALID_ARGUMENT', 'luks.all-slots');
    expect(area.bytes).toEqual(before);
    expect(await volume.eraseKeys({ slot: 0, passphrase: SECRET })).toEqual([0]);
    await refused({ slot: 1 }, 'INVALID_ARGUMENT', 'luks.last-slot');
    await refused({ slot: 1, passphrase: SECRET }, 'INVALID_ARGUMENT', 'luks.last-slot');
    await refused({ passphrase: SECRET }, 'INVALID_ARGUMENT', 'luks.all-slots');
    expect(activeSlots(await open(area))).toEqual([1]);
  });

  it('does all that when it is forced', async () => {
    const { area, volume } = await create();
    expect(await volume.eraseKeys({ slot: 4, force: true })).toEqual([4]);
    expect(await volume.eraseKeys({ passphrase: SECRET, force: true })).toEqual([0]);
    expect(activeSlots(await open(area))).toEqual([]);
    expect(await opens(await open(area), SECRET)).toBe('luks.password');
  });

  it('has the header durable before it overwrites the material, forty times', async () => {
    const { area, volume } = await create();
    await volume.addKey({ unlock: SECRET, passphrase: OTHER, ...QUICK });
    area.log.length = 0;
    await volume.eraseKeys({ slot: 1 });
    expect(area.log.slice(0, 2)).toEqual(['write 0+4096', 'flush']);
    const passes = area.log.slice(2);
    expect(passes.length).toBe(80);
    for (let i = 0; i < 80; i += 2) {
      expect(passes.slice(i, i + 2)).toEqual([`write ${4096 + STRIDE}+256000`, 'flush']);
    }
  });
});

describe('a crash', () => {
  it('while a slot is added costs nothing, while one is erased nothing but that one', async () => {
    const area = new MemoryArea(AREA, true);
    const { volume, key } = await create({}, area);
    const third = utf8('third');
    area.states.length = 0;
    await volume.addKey({ unlock: key, passphrase: OTHER, ...QUICK });
    await volume.addKey({ unlock: key, passphrase: third, slot: 6, ...QUICK });
    const added = area.states.splice(0);
    await volume.eraseKeys({ slot: 0 });
    const erased = area.states.splice(0);
    for (const [i, state] of added.entries()) {
      const now = await open(new MemoryArea(state));
      expect(await opens(now, SECRET), `adding, step ${i}`).toBe(0);
      if (i >= 4) expect(await opens(now, OTHER), `adding, step ${i}`).toBe(1);
    }
    for (const [i, state] of [...erased.slice(0, 4), ...erased.slice(-1)].entries()) {
      const now = await open(new MemoryArea(state));
      expect([await opens(now, OTHER), await opens(now, third)], `erasing, step ${i}`).toEqual([1, 6]);
      expect(await opens(now, SECRET), `erasing, step ${i}`).toBe('luks.password');
    }
  });

  it('that cuts the header between its sectors never makes a slot look like another one', async () => {
    const area = new MemoryArea(AREA, true);
    const { volume, key } = await create({}, area);
    const before = area.bytes.slice();
    // the entry of slot 6 lies across byte 512
    await volume.addKey({ unlock: key, passphrase: OTHER, slot: 6, ...QUICK });
    for (const [first, second] of [
      [area.bytes, before],
      [before, area.bytes],
    ] as const) {
      const torn = area.bytes.slice();
      torn.set(first.subarray(0, 512));
      torn.set(second.subarray(512, 4096), 512);
      const now = await open(new MemoryArea(torn));
      expect(await opens(now, SECRET)).toBe(0);
      expect(await opens(now, OTHER)).toBe('luks.password');
    }
  });
});
