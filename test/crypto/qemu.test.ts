/** LUKS against the real QEMU, both ways: what it makes we open, what we make it opens, and what it refuses we refuse. */
import { readFileSync, writeFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { isBlockError } from '../../src/base/errors.ts';
import type { AlgorithmOptions } from '../../src/crypto/algorithms.ts';
import { createLuks, planLuks } from '../../src/crypto/create-luks.ts';
import { type LuksVolume, openLuks } from '../../src/crypto/luks.ts';
import { createLegacyAesCipher } from '../../src/crypto/sector-cipher.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { scratch } from '../support/scratch.ts';
import {
  cryptoHeader,
  describeWithQemu,
  formatInfo,
  hostCluster,
  luksImage,
  mustRun,
  PASSWORD,
  qemu,
  secret,
} from './qemu.ts';
import { MemoryArea, quickCrypto, SUBJECT, seeded, utf8 } from './support.ts';

const LONG = process.env['COWDISK_LONG'] === '1';
const DISK = 128 * 1024;
const path = scratch();

/** Every cipher, mode, IV generator and hash that QEMU 7.2 and this library have in common. */
const CHOICES: readonly AlgorithmOptions[] = [
  {},
  { cipherAlg: 'aes-128', cipherMode: 'cbc', ivgenAlg: 'essiv', ivgenHashAlg: 'sha256', hashAlg: 'sha1' },
  { cipherAlg: 'aes-192', ivgenAlg: 'plain', hashAlg: 'sha512' },
  { cipherAlg: 'aes-256', cipherMode: 'ctr', hashAlg: 'ripemd160' },
  { cipherAlg: 'aes-128', cipherMode: 'xts', ivgenAlg: 'essiv', ivgenHashAlg: 'md5', hashAlg: 'md5' },
  { cipherAlg: 'aes-256', cipherMode: 'cbc', ivgenAlg: 'plain64', hashAlg: 'sha224' },
  { cipherAlg: 'aes-256', cipherMode: 'cbc', ivgenAlg: 'plain', ivgenHashAlg: 'sha1', hashAlg: 'sha384' },
  { cipherAlg: 'aes-128', cipherMode: 'ecb', hashAlg: 'sha256' },
  { cipherAlg: 'aes-256', cipherMode: 'xts', ivgenAlg: 'essiv', hashAlg: 'sha1' },
  { cipherAlg: 'aes-256', cipherMode: 'ctr', ivgenAlg: 'essiv', hashAlg: 'sha256' },
];

/** As `-o` takes them. */
function optionText(options: AlgorithmOptions): string {
  const names = { cipherAlg: 'cipher-alg', cipherMode: 'cipher-mode', ivgenAlg: 'ivgen-alg', hashAlg: 'hash-alg' };
  const all = { ...names, ivgenHashAlg: 'ivgen-hash-alg' };
  return Object.entries(options)
    .map(([key, value]) => `,${all[key as keyof typeof all]}=${value}`)
    .join('');
}

function open(bytes: Uint8Array): Promise<LuksVolume> {
  return openLuks(new MemoryArea(bytes), nodeCrypto, { subject: SUBJECT });
}

/** The disk of a volume in one file, decrypted. */
async function diskOf(bytes: Uint8Array, password = PASSWORD): Promise<Uint8Array> {
  const volume = await open(bytes);
  const disk = bytes.slice(volume.payloadOffset);
  volume.sectorCipher(await volume.unlock(utf8(password))).decrypt(disk, 0);
  return disk;
}

/** A volume of ours with a disk in it, in a file. */
async function makeOurs(file: string, options: AlgorithmOptions, plain: Uint8Array): Promise<LuksVolume> {
  const { headerBytes } = planLuks(options, SUBJECT);
  const area = new MemoryArea(headerBytes + plain.length);
  const { volume, key } = await createLuks(area, quickCrypto(), {
    ...options,
    subject: SUBJECT,
    passphrase: utf8(PASSWORD),
    iterTime: 0,
  });
  volume.sectorCipher(key).encrypt(plain, area.bytes.subarray(headerBytes), 0);
  writeFileSync(file, area.bytes);
  return volume;
}

describeWithQemu('a volume of ours', () => {
  it.each(CHOICES)('with %j is read and written by QEMU', async (options) => {
    const file = path('ours.luks');
    const plain = seeded(DISK);
    const volume = await makeOurs(file, options, plain);
    expect(await formatInfo(file)).toEqual(volume.info());
    await mustRun('qemu-img', 'convert', ...luksImage(file), '-O', 'raw', path('out.raw'));
    expect(readFileSync(path('out.raw')).equals(plain)).toBe(true);
    await mustRun('qemu-io', ...luksImage(file), '-c', 'write -P 0x5a 3584 66048');
    plain.fill(0x5a, 3584, 3584 + 66_048);
    expect(await diskOf(readFileSync(file))).toEqual(plain);
  });

  it('has key slots that QEMU opens when they were added, and not when they were erased', async () => {
    const file = path('slots.luks');
    const plain = seeded(DISK);
    await makeOurs(file, {}, plain);
    const area = new MemoryArea(new Uint8Array(readFileSync(file)));
    const volume = await openLuks(area, quickCrypto(), { subject: SUBJECT });
    await volume.addKey({ unlock: utf8(PASSWORD), passphrase: utf8('second'), slot: 6, iterTime: 0 });
    await volume.eraseKeys({ slot: 0 });
    writeFileSync(file, area.bytes);
    await mustRun('qemu-img', 'convert', ...luksImage(file, 'second'), '-O', 'raw', path('out.raw'));
    expect(readFileSync(path('out.raw')).equals(plain)).toBe(true);
    const refused = await qemu('qemu-img', 'convert', ...luksImage(file), '-O', 'raw', path('out.raw'));
    expect(refused.status).toBe(1);
    expect(refused.stderr).toContain('Invalid password, cannot unlock any keyslot');
    expect(await formatInfo(file)).toEqual(volume.info());
  });
});

describeWithQemu('a volume of QEMU', () => {
  // each takes seconds, because QEMU measures its PBKDF2
  it.each(LONG ? CHOICES : CHOICES.slice(0, 2))('with %j is read and written by us', async (options) => {
    const file = path('theirs.luks');
    const create = `key-secret=s,iter-time=10${optionText(options)}`;
    await mustRun('qemu-img', 'create', '-q', '-f', 'luks', ...secret('s', PASSWORD), '-o', create, file, `${DISK}`);
    await mustRun('qemu-io', ...luksImage(file), '-c', 'write -P 0x11 0 64k', '-c', 'write -P 0x22 64k 64k');
    const bytes = new Uint8Array(readFileSync(file));
    const expected = new Uint8Array(DISK).fill(0x11, 0, DISK / 2).fill(0x22, DISK / 2);
    expect(await diskOf(bytes)).toEqual(expected);
    const volume = await open(bytes);
    expect(volume.info()).toEqual(await formatInfo(file));
    expect(volume.payloadOffset).toBe(planLuks(options, SUBJECT).headerBytes);
    await expect(volume.unlock(utf8('wrong'))).rejects.toMatchObject({ reason: 'luks.password' });

    const sector = seeded(512);
    const encrypted = bytes.subarray(volume.payloadOffset + 100 * 512, volume.payloadOffset + 101 * 512);
    volume.sectorCipher(await volume.unlock(utf8(PASSWORD))).encrypt(sector, encrypted, 100);
    writeFileSync(file, bytes);
    expected.set(sector, 100 * 512);
    await mustRun('qemu-img', 'convert', ...luksImage(file), '-O', 'raw', path('out.raw'));
    expect(readFileSync(path('out.raw')).equals(expected)).toBe(true);
  });

  it('has key slots that it added itself', async () => {
    const file = path('amended.luks');
    await makeOurs(file, {}, seeded(DISK));
    const secrets = [...luksImage(file).slice(0, 2), ...secret('n', 'second')];
    const image = luksImage(file).slice(2);
    await mustRun('qemu-img', 'amend', ...secrets, ...image, '-o', 'state=active,new-secret=n,keyslot=3,iter-time=10');
    expect(await diskOf(new Uint8Array(readFileSync(file)), 'second')).toEqual(seeded(DISK));
    await mustRun('qemu-img', 'amend', ...secrets, ...image, '-o', 'state=inactive,keyslot=0');
    const volume = await open(new Uint8Array(readFileSync(file)));
    await expect(volume.unlock(utf8(PASSWORD))).rejects.toMatchObject({ reason: 'luks.password' });
    expect((await volume.unlock(utf8('second'))).slot).toBe(3);
  });
});

describeWithQemu('an encrypted qcow2 image of QEMU', () => {
  const WRITES = ['write -P 0x33 64k 64k', 'write -P 0x44 0 64k'];

  async function create(file: string, format: string, more = ''): Promise<Buffer> {
    const options = `encrypt.format=${format},encrypt.key-secret=s${more}`;
    await mustRun('qemu-img', 'create', '-q', '-f', 'qcow2', ...secret('s', PASSWORD), '-o', options, file, '1M');
    const image = `driver=qcow2,encrypt.key-secret=s,file.filename=${file}`;
    const commands = WRITES.flatMap((command) => ['-c', command]);
    await mustRun('qemu-io', ...secret('s', PASSWORD), '--image-opts', image, ...commands);
    return readFileSync(file);
  }

  it('with LUKS has a header in its clusters, and counts sectors by the host offset', async () => {
    const image = await create(path('luks.qcow2'), 'luks', ',encrypt.iter-time=10');
    const { offset, length } = cryptoHeader(image);
    expect(length).toBe(2_068_480);
    const volume = await open(new Uint8Array(image.subarray(offset, offset + length)));
    const { encrypt } = await formatInfo(path('luks.qcow2'));
    expect({ ...volume.info(), format: 'luks' }).toEqual(encrypt);
    const cipher = volume.sectorCipher(await volume.unlock(utf8(PASSWORD)));
    for (const [guest, byte] of [
      [0, 0x44],
      [65_536, 0x33],
    ] as const) {
      const host = hostCluster(image, guest);
      const cluster = new Uint8Array(image.subarray(host, host + 65_536));
      cipher.decrypt(cluster, host / 512);
      expect(cluster.every((each) => each === byte)).toBe(true);
    }
  });

  it('with the old AES counts them by the guest offset', async () => {
    const image = await create(path('aes.qcow2'), 'aes');
    const cipher = createLegacyAesCipher(utf8(PASSWORD), nodeCrypto, SUBJECT);
    for (const [guest, byte] of [
      [0, 0x44],
      [65_536, 0x33],
    ] as const) {
      const host = hostCluster(image, guest);
      const cluster = new Uint8Array(image.subarray(host, host + 65_536));
      const encrypted = cluster.slice();
      cipher.decrypt(cluster, guest / 512);
      expect(cluster.every((each) => each === byte)).toBe(true);
      const again = new Uint8Array(cluster.length);
      cipher.encrypt(cluster, again, guest / 512);
      expect(again).toEqual(encrypted);
    }
  });
});

/** Header fields of 32 bits, and one of 16. */
const slotAt = (slot: number): number => 208 + slot * 48;
const u32 = (at: number, value: number) => (view: DataView) => view.setUint32(at, value);
const text = (at: number, value: string) => (view: DataView) =>
  new Uint8Array(view.buffer).set(utf8(value.padEnd(32, '\0')), at);

/** A changed header, QEMU's sentence, and our reason. */
const FAULTS: readonly (readonly [string, (view: DataView) => void, string, string])[] = [
  [
    'a cipher name without end',
    text(8, 'a'.repeat(32)),
    'LUKS header cipher name is not NUL terminated',
    'luks.string',
  ],
  ['a cipher mode without end', text(40, 'a'.repeat(32)), 'LUKS header cipher mode is not NUL term', 'luks.string'],
  ['a hash without end', text(72, 'a'.repeat(32)), 'LUKS header hash spec is not NUL terminated', 'luks.string'],
  ['a payload in the header', u32(104, 7), 'LUKS payload is overlapping with the header', 'luks.payload'],
  ['no digest iterations', u32(164, 0), 'LUKS key iteration count is zero', 'luks.digest-iterations'],
  ['too few stripes', u32(slotAt(2) + 44, 3999), 'Keyslot 2 is corrupted (stripes 3999 != 4000)', 'luks.slot-stripes'],
  ['a strange state', u32(slotAt(3), 1), 'Keyslot 3 state (active/disable) is corrupted', 'luks.slot-state'],
  ['no iterations', u32(slotAt(0) + 4, 0), 'Keyslot 0 iteration count is zero', 'luks.slot-iterations'],
  [
    'material in the header',
    u32(slotAt(0) + 40, 7),
    'Keyslot 0 is overlapping with the LUKS header',
    'luks.slot-header',
  ],
  [
    'material in the payload',
    u32(104, 4039),
    'Keyslot 7 is overlapping with the encrypted payload',
    'luks.slot-payload',
  ],
  ['slots in one place', u32(slotAt(1) + 40, 8), 'Keyslots 0 and 1 are overlapping', 'luks.slot-overlap'],
  ['slots that overlap by a sector', u32(slotAt(1) + 40, 511), 'Keyslots 0 and 1 are overlapping', 'luks.slot-overlap'],
  ['a mode alone', text(40, 'xts'), "Unexpected cipher mode string format 'xts'", 'luks.mode-field'],
  ['an unknown mode', text(40, 'lrw-plain64'), "Cipher mode 'lrw' not supported", 'luks.mode'],
  ['an unknown IV generator', text(40, 'xts-benbi'), "IV generator 'benbi' not supported", 'luks.iv-generator'],
  ['an unknown IV hash', text(40, 'xts-plain64:x'), "Hash algorithm 'x' not supported", 'luks.hash'],
  ['an empty IV hash', text(40, 'xts-plain64:'), "Hash algorithm '' not supported", 'luks.hash'],
  ['essiv without hash', text(40, 'cbc-essiv'), 'with key size 64 bytes not supported', 'luks.cipher'],
  ['essiv of XTS without hash', text(40, 'xts-essiv'), 'Missing IV generator hash specification', 'luks.iv-hash'],
  ['essiv with a long hash', text(40, 'xts-essiv:sha512'), 'No AES cipher with key size 64 available', 'luks.essiv'],
  ['an unknown hash', text(72, 'whirlpool'), "Hash algorithm 'whirlpool' not supported", 'luks.hash'],
  ['an unknown cipher', text(8, 'camellia'), "Algorithm 'camellia' with key size 32", 'luks.cipher'],
  ['a short key', u32(108, 16), "Algorithm 'aes' with key size 8 bytes not supported", 'luks.cipher'],
];

/** Changed headers that are as good as before. */
const GOOD: readonly (readonly [string, (view: DataView) => void])[] = [
  ['nothing changed', () => undefined],
  ['a payload farther behind', u32(104, 4096)],
  ['a key of 32 bytes, for AES-128', u32(108, 32)],
  [
    'another mode, of half the key',
    (view) => {
      text(40, 'ctr-plain64:sha1')(view);
      view.setUint32(108, 32);
    },
  ],
  ['serpent', text(8, 'serpent')],
  ['an IV hash that means nothing', text(40, 'xts-plain:md5')],
  ['another hash', text(72, 'ripemd160')],
  [
    'slots in another order',
    (view) => {
      view.setUint32(slotAt(1) + 40, 1016);
      view.setUint32(slotAt(2) + 40, 512);
    },
  ],
  ['many iterations', u32(slotAt(0) + 4, 2 ** 32 - 1)],
];

describeWithQemu('a header with', () => {
  beforeAll(async () => {
    await makeOurs(path('base.luks'), {}, seeded(64 * 1024));
  });

  async function both(change: (view: DataView) => void) {
    const bytes = new Uint8Array(readFileSync(path('base.luks')));
    change(new DataView(bytes.buffer));
    writeFileSync(path('changed.luks'), bytes);
    const theirs = await qemu('qemu-img', 'info', '--image-opts', `driver=luks,file.filename=${path('changed.luks')}`);
    const ours = await open(bytes).catch((error: unknown) => error);
    return { theirs, ours };
  }

  describe('a fault is refused as QEMU does:', () => {
    it.each(FAULTS)('%s', async (_, change, sentence, reason) => {
      const { theirs, ours } = await both(change);
      expect(theirs.stderr).toContain(sentence);
      expect(isBlockError(ours) ? ours.reason : ours).toBe(reason);
    });
  });

  describe('no fault is taken as QEMU does:', () => {
    it.each(GOOD)('%s', async (_, change) => {
      const { theirs, ours } = await both(change);
      expect(theirs).toMatchObject({ status: 0, stderr: '' });
      expect(isBlockError(ours) ? ours.message : undefined).toBeUndefined();
    });
  });
});
