/** Encrypted qcow2 images in memory: keys, tweaks, refusals, wiping. The real QEMU is in test/interop/qcow2-encryption.test.ts. */
import { createCipheriv } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.ts';
import { resolveOptions } from '../../../src/base/options.ts';
import type { CreateContext, OpenContext } from '../../../src/core/format.ts';
import { type MappedNode, mappedNode } from '../../../src/core/mapped-node.ts';
import { secretsOf } from '../../../src/core/secrets.ts';
import { CacheBudget } from '../../../src/core/table-cache.ts';
import { qcow2 } from '../../../src/formats/qcow2/driver.ts';
import { readHeader } from '../../../src/formats/qcow2/header.ts';
import { createOptions, openOptions } from '../../../src/formats/qcow2/options.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { noise, seededRandom } from '../../../src/testing/random.ts';
import { codecs, PASSWORD } from '../../support/qcow2-under-test.ts';
import { failureOf } from './support.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const QUICK = { encryptFormat: 'luks', encryptKeySecret: 'key', encryptCipherAlg: 'aes-128', encryptIterTime: 0 };
const AES = { encryptFormat: 'aes', encryptKeySecret: 'key' };

type Input = Readonly<Record<string, unknown>>;

async function create(options: Input, size = MiB, secrets: Record<string, string> = { key: PASSWORD }) {
  const file = new MemoryStore({ pageSize: 512 });
  const context: CreateContext = {
    file,
    name: 'disk',
    createReference: () => Promise.resolve(new MemoryStore({})),
    referenceStatus: () => Promise.resolve(undefined),
    secret: secretsOf(secrets),
  };
  await qcow2.create?.(context, size, resolveOptions(createOptions, options));
  return file;
}

async function open(file: MemoryStore, options: Input = { encryptKeySecret: 'key' }, more: Partial<OpenContext> = {}) {
  const context: OpenContext = {
    file,
    name: 'disk',
    readOnly: true,
    forCheck: false,
    unsafe: false,
    cache: new CacheBudget(1 << 20),
    codecs,
    secret: secretsOf({ key: PASSWORD, wrong: 'horse' }),
    referenceStatus: () => Promise.resolve(undefined),
    openReference: () => Promise.reject(new Error('no references here')),
    report: () => undefined,
    ...more,
  };
  return mappedNode(await qcow2.open(context, resolveOptions(openOptions, options)), { name: 'disk' });
}

async function readAll(node: MappedNode, offset = 0, length = node.size): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await node.read(offset, bytes);
  return bytes;
}

/** The bytes of the file that hold guest offset 0. */
async function hostBytes(
  file: MemoryStore,
  node: MappedNode,
  length: number,
): Promise<{ bytes: Uint8Array; at: number }> {
  const runs: { at: number }[] = [];
  const { RunList } = await import('../../../src/core/run.ts');
  const list = new RunList();
  list.reset(0, length);
  await node.format.map(0, length, list);
  runs.push({ at: list.at(0).hostOffset });
  const at = runs[0]?.at as number;
  const bytes = new Uint8Array(length);
  await file.read(at, bytes);
  return { bytes, at };
}

describe('an encrypted image', () => {
  it('of the old method has AES-128-CBC by the first 16 bytes of the password and the guest sector number (Q-150, Q-151)', async () => {
    const file = await create(AES, MiB, { key: 'short' });
    const secret = secretsOf({ key: 'short' });
    const node = await open(file, { encryptKeySecret: 'key' }, { readOnly: false, secret });
    const data = noise(seededRandom(3), 1024);
    await node.write(0, data);
    const { bytes } = await hostBytes(file, node, 1024);
    const key = Buffer.alloc(16);
    key.write('short');
    for (const sector of [0, 1]) {
      const iv = Buffer.alloc(16);
      iv.writeUInt32LE(sector);
      const cipher = createCipheriv('aes-128-cbc', key, iv).setAutoPadding(false);
      const expected = cipher.update(data.subarray(sector * 512, sector * 512 + 512));
      expect(Buffer.from(bytes.subarray(sector * 512, sector * 512 + 512)).equals(expected)).toBe(true);
    }
    await node.close();
  });

  it('of the old method shows nonsense, and no error, for a wrong password (Q-153)', async () => {
    const file = await create(AES);
    const node = await open(file, { encryptKeySecret: 'key' }, { readOnly: false });
    const data = noise(seededRandom(4), 4096);
    await node.write(0, data);
    await node.close();
    const other = await open(file.reopen(), { encryptKeySecret: 'wrong' });
    expect(Buffer.from(await readAll(other, 0, 4096)).equals(data)).toBe(false);
    await other.close();
  });

  it('of LUKS is encrypted by host offset: what a snapshot makes move is encrypted anew (M-13)', async () => {
    const file = await create(QUICK);
    const node = await open(file, { encryptKeySecret: 'key' }, { readOnly: false });
    const data = noise(seededRandom(5), 64 * KiB);
    await node.write(0, data);
    const before = await hostBytes(file, node, 64 * KiB);
    expect(Buffer.from(before.bytes).equals(data)).toBe(false);
    await node.createSnapshot({ name: 'a', dateSeconds: 1 });
    await node.write(64 * KiB - 1, Uint8Array.of(data[64 * KiB - 1] as number));
    const after = await hostBytes(file, node, 64 * KiB);
    expect(after.at).not.toBe(before.at);
    expect(Buffer.from(after.bytes.subarray(0, 4096)).equals(before.bytes.subarray(0, 4096))).toBe(false);
    expect(Buffer.from(await readAll(node, 0, 64 * KiB)).equals(data)).toBe(true);
    await node.close();
  });

  it('keeps the state of a machine encrypted', async () => {
    const file = await create(QUICK);
    const node = await open(file, { encryptKeySecret: 'key' }, { readOnly: false });
    const state = noise(seededRandom(6), 100_000);
    await node.writeVmState(0, state);
    await node.createSnapshot({ name: 'a', dateSeconds: 1, vmStateSize: state.length });
    await node.close();
    const all = file.reopen();
    expect(Buffer.from(all.bytes()).includes(Buffer.from(state.subarray(0, 64)))).toBe(false);
    const frozen = await open(all, { encryptKeySecret: 'key' }, { snapshot: 'a' });
    const read = new Uint8Array(state.length);
    await frozen.readVmState(0, read);
    expect(Buffer.from(read).equals(state)).toBe(true);
    await frozen.close();
  });

  it.each([
    ['luks', QUICK, {}],
    ['luks', QUICK, { extendedL2: true }],
    ['aes', AES, {}],
  ])('with preallocation reads as zeros, and is written in its place (%s %j %j)', async (_method, encryption, more) => {
    const file = await create({ ...encryption, ...more, preallocation: 'metadata' });
    const { size } = file;
    const node = await open(file, { encryptKeySecret: 'key' }, { readOnly: false });
    expect((await readAll(node)).every((byte) => byte === 0)).toBe(true);
    await node.write(1000, Uint8Array.of(1, 2, 3));
    expect([...(await readAll(node, 999, 5))]).toEqual([0, 1, 2, 3, 0]);
    expect(file.size).toBe(size);
    await node.close();
  });

  it('is grown over the rest of a cluster that the backing file would fill', async () => {
    const backing = MemoryStore.from(noise(seededRandom(7), 256 * KiB));
    const file = await create({ ...QUICK, backingFile: 'base', backingFmt: 'raw' }, 65 * KiB);
    const node = await open(
      file,
      { encryptKeySecret: 'key' },
      { readOnly: false, openReference: () => Promise.resolve(backing) },
    );
    await node.truncate(200 * KiB);
    const expected = new Uint8Array(200 * KiB);
    expected.set(backing.bytes().subarray(0, 65 * KiB));
    expect(Buffer.from(await readAll(node)).equals(expected)).toBe(true);
    await node.close();
  });
});

describe('keys', () => {
  it('are needed for data, and not for facts or a check (Q-155)', async () => {
    for (const options of [AES, QUICK]) {
      const file = await create(options);
      expect(await failureOf(() => open(file, {}))).toMatchObject({ code: 'ENCRYPTED', reason: 'qcow2.encrypted' });
      const facts = await open(file, {}, { metadataOnly: true });
      expect(await failureOf(() => readAll(facts))).toMatchObject({ code: 'ENCRYPTED', reason: 'qcow2.encrypted' });
      const result = await (await open(file, {}, { forCheck: true })).format.check?.check({});
      expect(result).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
    }
  });

  it.each([
    [{ encryptKeySecret: 'wrong' }, 'ENCRYPTED', 'luks.password'],
    [{ encryptKeySecret: 'nobody' }, 'NOT_FOUND', 'secret.missing'],
    [{ encryptKeySecret: 'key', encryptFormat: 'aes' }, 'OPTION', 'qcow2.encrypt-mismatch'],
    [{ encryptKeySecret: 'key', encryptRoundLimit: 10 }, 'UNSUPPORTED', 'luks.rounds'],
  ])('that do not fit are told: %j', async (options, code, reason) => {
    const file = await create(QUICK);
    expect(await failureOf(() => open(file, options))).toMatchObject({ code, reason });
  });

  it('are not asked for where nothing is encrypted, unless encryption is asked for (Q-152)', async () => {
    const file = await create({});
    await (await open(file, { encryptKeySecret: 'nobody' })).close();
    expect(await failureOf(() => open(file.reopen(), { encryptFormat: 'luks' }))).toMatchObject({
      reason: 'qcow2.encrypt-mismatch',
    });
  });

  it('are forgotten at close, and when opening fails', async () => {
    const file = await create(QUICK);
    const node = await open(file);
    const { transform } = node.format;
    await node.close();
    expect(() => transform?.decrypt(new Uint8Array(512), 0)).toThrow(expect.objectContaining({ code: 'CLOSED' }));
    const given: Uint8Array[] = [];
    const secret = (): Uint8Array => {
      given.push(new TextEncoder().encode(PASSWORD));
      return given.at(-1) as Uint8Array;
    };
    const overlay = await create({ ...QUICK, backingFile: 'base', backingFmt: 'raw' });
    await expect(open(overlay, { encryptKeySecret: 'key' }, { secret })).rejects.toThrow('no references here');
    expect(given.map((bytes) => bytes.every((byte) => byte === 0))).toEqual([true]);
  });
});

describe('options of a new image', () => {
  it.each([
    [{ encryption: true }, 'ENCRYPTED', 'qcow2.encrypted'],
    [{ encryption: true, encryptFormat: 'aes' }, 'OPTION', 'qcow2.encrypt-twice'],
    [{ encryptKeySecret: 'key' }, 'OPTION', 'qcow2.encrypt-format-missing'],
    [{ encryptIterTime: 10 }, 'OPTION', 'qcow2.encrypt-format-missing'],
    [{ encryptFormat: 'rot13' }, 'OPTION', 'qcow2.encrypt-format'],
    [{ encryptFormat: 'luks' }, 'ENCRYPTED', 'qcow2.encrypted'],
    [{ encryptFormat: 'luks', encryptKeySecret: 'nobody' }, 'NOT_FOUND', 'secret.missing'],
    [{ ...AES, encryptCipherAlg: 'aes-128' }, 'OPTION', 'qcow2.encrypt-surplus'],
    [{ ...QUICK, encryptCipherAlg: 'rot13' }, 'OPTION', 'qcow2.encrypt-choice'],
    [{ ...QUICK, encryptHashAlg: 'crc32' }, 'OPTION', 'qcow2.encrypt-choice'],
    [{ ...QUICK, encryptCipherAlg: 'twofish-256' }, 'UNSUPPORTED', 'luks.cipher'],
    [{ ...QUICK, encryptCipherAlg: '3des' }, 'UNSUPPORTED', 'luks.cipher'],
    [{ ...QUICK, encryptCipherAlg: 'aes-192', encryptCipherMode: 'cbc' }, 'UNSUPPORTED', 'luks.key-bytes'],
    [{ ...QUICK, compat: 'v2', preallocation: 'metadata' }, 'UNSUPPORTED', 'qcow2.encrypt-preallocation'],
  ])('are refused where they make no sense: %j (M-14, Q-143)', async (options, code, reason) => {
    expect(await failureOf(() => create(options))).toMatchObject({ code, reason });
  });

  it('encryption=on is encrypt.format=aes (Q-143, Q-024)', async () => {
    const file = await create({ encryption: true, encryptKeySecret: 'key' });
    expect((await readHeader(file, 'disk', { readOnly: true, forCheck: false })).encryption).toBe('aes');
  });

  it('choose ciphers, modes, vectors and hashes (M-14)', async () => {
    const options = {
      ...QUICK,
      encryptCipherAlg: 'aes-256',
      encryptCipherMode: 'cbc',
      encryptIvgenAlg: 'essiv',
      encryptIvgenHashAlg: 'sha256',
      encryptHashAlg: 'sha512',
    };
    const file = await create(options);
    const { specific } = await (await open(file)).format.info();
    expect(specific?.data['encrypt']).toMatchObject({
      format: 'luks',
      'cipher-alg': 'aes-256',
      'cipher-mode': 'cbc',
      'ivgen-alg': 'essiv',
      'ivgen-hash-alg': 'sha256',
      'hash-alg': 'sha512',
    });
  });
});

describe('a hostile place of the LUKS header', () => {
  async function moved(offset: bigint, length: bigint): Promise<MemoryStore> {
    const file = await create(QUICK);
    const pointer = new Uint8Array(16);
    const view = new DataView(pointer.buffer);
    view.setBigUint64(0, offset);
    view.setBigUint64(8, length);
    // behind the 112 bytes of the header, in the first extension
    await file.write(120, pointer);
    return file;
  }

  it.each([
    ['past the end of the file', 0x7fff_0000n, 0x10_0000n, 'luks.magic'],
    ['in the header of the image', 0n, 0x10_0000n, 'luks.magic'],
    ['shorter than a LUKS header', 0x4_0000n, 591n, 'qcow2.crypto-window'],
    ['longer than every file', 0x4_0000n, 0xffff_ffff_ffff_0000n, 'qcow2.crypto-window'],
    ['beyond what a number holds', 0x7fff_ffff_ffff_0000n, 0x10_0000n, 'qcow2.crypto-offset'],
    ['cut off before the key material', 0x4_0000n, 4096n, 'luks.truncated'],
  ])('%s is an error and nothing else', async (_what, offset, length, reason) => {
    const file = await moved(offset, length);
    const failure = await failureOf(() => open(file));
    expect(failure).toBeInstanceOf(BlockError);
    expect(failure.reason).toBe(reason);
  });

  it('that asks for more iterations than can be spent says so at once (M-13)', async () => {
    const file = await create(QUICK);
    const { crypto } = await readHeader(file, 'disk', { readOnly: true, forCheck: false });
    const iterations = Uint8Array.of(0x7f, 0xff, 0xff, 0xff);
    for (const at of [164, 208 + 4]) await file.write((crypto?.offset as number) + at, iterations);
    expect(await failureOf(() => open(file))).toMatchObject({ code: 'UNSUPPORTED', reason: 'luks.rounds' });
  });

  it('is not written over: guest data that a damaged table puts there is refused', async () => {
    const file = await create(QUICK);
    const { crypto } = await readHeader(file, 'disk', { readOnly: true, forCheck: false });
    const node = await open(file, { encryptKeySecret: 'key' }, { readOnly: false });
    await node.write(0, Uint8Array.of(1));
    await node.flush();
    const check = node.format.checkDataWrite?.(0, (crypto?.offset as number) + 4096, 512);
    await expect(check).rejects.toMatchObject({ code: 'CORRUPT', reason: 'qcow2.overlap' });
    await node.close().catch(() => undefined);
  });
});

describe('compressed clusters', () => {
  it('are not written into an encrypted image, where they would be plain (Q-154)', async () => {
    const file = await create(QUICK);
    const node = await open(file, { encryptKeySecret: 'key' }, { readOnly: false });
    expect(await failureOf(() => node.write(0, new Uint8Array(64 * KiB), { compressed: true }))).toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'qcow2.compressed-encrypted',
    });
    await node.close();
  });
});

describe('reading', () => {
  it('decrypts the guest buffer in place, in pieces that the cipher bounds (Q-097)', async () => {
    const file = await create(QUICK, 4 * MiB);
    const node = await open(file, { encryptKeySecret: 'key' }, { readOnly: false });
    const data = noise(seededRandom(8), 3 * MiB);
    const kept = data.slice();
    await node.write(12_345, data);
    expect(Buffer.from(data).equals(kept)).toBe(true);
    expect(Buffer.from(await readAll(node, 12_345, data.length)).equals(kept)).toBe(true);
    await node.close();
  });
});
