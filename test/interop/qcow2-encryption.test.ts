/** Encrypted qcow2 images, both ways: what QEMU made is read and written by us, what we made is compared and checked by QEMU; turns of both
 *  on one image; every layer of a chain encrypted; key slots changed by both. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  amendImage,
  applySnapshot,
  checkImage,
  commitImage,
  compareImages,
  convertImage,
  createImage,
  createSnapshot,
  imageInfo,
  measureImage,
  openImage,
  rebaseImage,
} from '../../src/node.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { describeWithQemu, mustRun, qemu, secret } from '../crypto/qemu.ts';

const SEED = Number(process.env['COWDISK_SEED'] ?? 1);
const LONG = process.env['COWDISK_LONG'] === '1';
const ROUNDS = LONG ? 25 : 2;
const KiB = 1024;
const MiB = 1024 * KiB;
const MINUTE = 60_000;

const PASSWORD = 'correct horse';
const SECRETS = { s: PASSWORD, n: 'battery staple' };
const OBJECTS = [...secret('s', PASSWORD), ...secret('n', SECRETS.n)];
const KEY = { encryptKeySecret: 's' };

const directory = mkdtempSync(join(tmpdir(), 'cowdisk-encryption-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const path = (name: string): string => join(directory, name);
/** Named in full: QEMU finds no relative ones for images that are given as options. */
const DATA_FILE = path('ours.data');
const qemuOptions = (name: string, key = 's'): string =>
  `driver=qcow2,file.driver=file,file.filename=${path(name)},encrypt.key-secret=${key}`;

/** Made by QEMU: options of `-o` without the prefix, or the old method. */
const THEIRS: readonly (readonly [name: string, options: string, more?: string])[] = [
  ['aes-256 xts plain64 sha256', 'luks'],
  ['aes-128 xts plain sha1', 'luks,cipher-alg=aes-128,ivgen-alg=plain,hash-alg=sha1'],
  ['aes-192 xts essiv sha512', 'luks,cipher-alg=aes-192,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512'],
  ['aes-256 cbc essiv sha256', 'luks,cipher-mode=cbc,ivgen-alg=essiv'],
  ['aes-128 cbc plain64 ripemd160', 'luks,cipher-alg=aes-128,cipher-mode=cbc,hash-alg=ripemd160'],
  ['aes-256 ctr plain64 sha384', 'luks,cipher-mode=ctr,hash-alg=sha384'],
  ['aes-256 ecb plain64 sha224', 'luks,cipher-mode=ecb,hash-alg=sha224'],
  ['the old method', 'aes'],
  ['subclusters', 'luks', 'extended_l2=on,cluster_size=16k'],
  ['version 2', 'luks', 'compat=0.10,cluster_size=4k'],
];

function createOptions(options: string, more = ''): string {
  const [method = '', ...rest] = options.split(',');
  const all = [`encrypt.format=${method}`, 'encrypt.key-secret=s', ...rest.map((option) => `encrypt.${option}`)];
  if (method === 'luks') all.push('encrypt.iter-time=10');
  if (more !== '') all.push(more);
  return all.join(',');
}

async function checkClean(name: string): Promise<void> {
  const said = await qemu('qemu-img', 'check', ...OBJECTS, '--output=json', '--image-opts', qemuOptions(name));
  if (said.stdout === '') throw new Error(said.stderr);
  const theirs = JSON.parse(said.stdout) as Record<string, number>;
  expect([theirs['corruptions'], theirs['leaks'], theirs['check-errors']]).toEqual([undefined, undefined, 0]);
  const { result } = await checkImage(path(name), { format: 'qcow2', references: 'allow' });
  expect(result).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
}

async function expectContent(name: string, bytes: Buffer): Promise<void> {
  writeFileSync(path('expected.raw'), bytes);
  const raw = `driver=raw,file.driver=file,file.filename=${path('expected.raw')}`;
  await mustRun('qemu-img', 'compare', ...OBJECTS, '--image-opts', raw, qemuOptions(name));
  await using image = await openImage(path(name), { options: KEY, secrets: SECRETS, references: 'allow' });
  expect(Buffer.from(await image.read(0, image.virtualSize)).equals(bytes)).toBe(true);
}

/** Writes by us; the bytes follow. */
async function churn(name: string, bytes: Buffer, random: () => number): Promise<void> {
  await using image = await openImage(path(name), {
    options: KEY,
    secrets: SECRETS,
    readOnly: false,
    references: 'allow',
  });
  for (let i = 0; i < 12; i++) {
    const offset = below(random, bytes.length);
    const length = Math.min(1 + below(random, 150 * KiB), bytes.length - offset);
    if (random() < 0.3) {
      bytes.fill(0, offset, offset + length);
      await image.writeZeroes(offset, length, { unmap: random() < 0.5 });
    } else {
      const data = noise(random, length);
      bytes.set(data, offset);
      await image.write(offset, data);
    }
  }
}

/** Writes by QEMU. */
async function theirChurn(name: string, bytes: Buffer, random: () => number): Promise<void> {
  const commands: string[] = [];
  for (let i = 0; i < 8; i++) {
    const offset = below(random, bytes.length / 512) * 512;
    const length = Math.min((1 + below(random, 200)) * 512, bytes.length - offset);
    const value = 1 + below(random, 255);
    if (random() < 0.3) {
      bytes.fill(0, offset, offset + length);
      commands.push('-c', `write -z ${offset} ${length}`);
    } else {
      bytes.fill(value, offset, offset + length);
      commands.push('-c', `write -P ${value} ${offset} ${length}`);
    }
  }
  await mustRun('qemu-io', ...OBJECTS, ...commands, '--image-opts', qemuOptions(name));
}

describeWithQemu('an encrypted image that QEMU made', () => {
  it.each(LONG ? THEIRS : THEIRS.filter((_, i) => i % 3 === 0 || i === 8))(
    'is read and written by both: %s (M-13, M-14, Q-151)',
    async (_name, options, more) => {
      const random = seededRandom(SEED);
      const bytes = Buffer.alloc(2 * MiB);
      await mustRun(
        'qemu-img',
        'create',
        '-q',
        ...OBJECTS,
        '-f',
        'qcow2',
        '-o',
        createOptions(options ?? '', more),
        path('theirs'),
        '2M',
      );
      await theirChurn('theirs', bytes, random);
      await expectContent('theirs', bytes);
      await churn('theirs', bytes, random);
      await expectContent('theirs', bytes);
      await checkClean('theirs');
    },
    MINUTE,
  );

  it('is described alike, key slots and all', async () => {
    const options = createOptions('luks,cipher-mode=cbc,ivgen-alg=essiv');
    await mustRun('qemu-img', 'create', '-q', ...OBJECTS, '-f', 'qcow2', '-o', options, path('info'), '2M');
    const theirs = JSON.parse(await mustRun('qemu-img', 'info', '--output=json', path('info'))) as {
      'format-specific': { data: unknown };
    };
    const { encrypted, specific } = await imageInfo(path('info'));
    expect(encrypted).toBe(true);
    expect(specific?.data).toEqual(theirs['format-specific'].data);
  });

  it('with a cipher that is refused tells its facts, and names the cipher when data is wanted', async () => {
    const options = createOptions('luks,cipher-alg=twofish-256');
    await mustRun('qemu-img', 'create', '-q', ...OBJECTS, '-f', 'qcow2', '-o', options, path('twofish'), '2M');
    expect((await imageInfo(path('twofish'))).specific?.data['encrypt']).toMatchObject({ 'cipher-alg': 'twofish-256' });
    await expect(openImage(path('twofish'), { options: KEY, secrets: SECRETS })).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'luks.cipher',
    });
  });
});

describeWithQemu('an encrypted image that we made', () => {
  const OURS: readonly (readonly [name: string, options: Readonly<Record<string, unknown>>])[] = [
    ['defaults', {}],
    [
      'cbc',
      { encryptCipherAlg: 'aes-128', encryptCipherMode: 'cbc', encryptIvgenAlg: 'essiv', encryptHashAlg: 'sha1' },
    ],
    ['aes-192', { encryptCipherAlg: 'aes-192', encryptIvgenAlg: 'plain', encryptHashAlg: 'sha512' }],
    ['ctr', { encryptCipherMode: 'ctr' }],
    ['the old method', { encryptFormat: 'aes', encryptIterTime: undefined }],
    ['subclusters', { extendedL2: true, clusterSize: 32 * KiB }],
    ['version 2', { compat: 'v2', clusterSize: 512 }],
    ['preallocated metadata', { preallocation: 'metadata', clusterSize: 4 * KiB }],
    ['preallocated', { preallocation: 'full' }],
    ['a data file', { dataFile: DATA_FILE }],
    ['a raw data file', { dataFile: DATA_FILE, dataFileRaw: true }],
    ['refcounts of one bit', { lazyRefcounts: true, refcountBits: 1 }],
  ];

  it.each(OURS)(
    'is read, written and found clean by both: %s (M-13, M-14)',
    async (_name, options) => {
      const random = seededRandom(SEED + 1);
      const bytes = Buffer.alloc(MiB);
      await createImage(path('ours'), {
        format: 'qcow2',
        size: bytes.length,
        options: { encryptFormat: 'luks', encryptKeySecret: 's', encryptIterTime: 10, ...options },
        secrets: SECRETS,
      });
      await checkClean('ours');
      await expectContent('ours', bytes);
      await churn('ours', bytes, random);
      await theirChurn('ours', bytes, random);
      await expectContent('ours', bytes);
      await checkClean('ours');
    },
    MINUTE,
  );

  it('takes the space that both measure', async () => {
    const options = { encryptFormat: 'luks', encryptCipherAlg: 'aes-128' };
    const ours = await measureImage({ format: 'qcow2', size: 8 * MiB, options });
    const list = createOptions('luks,cipher-alg=aes-128');
    const theirs = JSON.parse(
      await mustRun('qemu-img', 'measure', ...OBJECTS, '--output=json', '-O', 'qcow2', '-o', list, '--size', '8M'),
    ) as Record<string, number>;
    expect([ours.required, ours.fullyAllocated]).toEqual([theirs['required'], theirs['fully-allocated']]);
  });
});

describeWithQemu('one encrypted image and both writers by turns', () => {
  it.each([
    ['luks', ''],
    ['luks', 'extended_l2=on,cluster_size=16k'],
    ['aes', 'cluster_size=4k'],
  ])(
    'hold what a model holds, with snapshots: %s %s',
    async (method, more) => {
      const random = seededRandom(SEED + 2);
      const bytes = Buffer.alloc(2 * MiB);
      await mustRun(
        'qemu-img',
        'create',
        '-q',
        ...OBJECTS,
        '-f',
        'qcow2',
        '-o',
        createOptions(method, more),
        path('turns'),
        '2M',
      );
      const opening = { options: KEY, secrets: SECRETS };
      let frozen = Buffer.from(bytes);
      await createSnapshot(path('turns'), { name: 'first', date: new Date(0) }, opening);
      for (let round = 0; round < ROUNDS; round++) {
        await churn('turns', bytes, random);
        await theirChurn('turns', bytes, random);
        if (round === 1) {
          await mustRun('qemu-img', 'snapshot', ...OBJECTS, '-c', 'second', '--image-opts', qemuOptions('turns'));
          frozen = Buffer.from(bytes);
        }
      }
      await expectContent('turns', bytes);
      await applySnapshot(path('turns'), ROUNDS > 1 ? 'second' : 'first', opening);
      await expectContent('turns', frozen);
      await checkClean('turns');
    },
    2 * MINUTE,
  );
});

describeWithQemu('a chain of encrypted images', () => {
  const random = seededRandom(SEED + 3);
  const bytes = Buffer.alloc(MiB);
  const reference = { format: 'qcow2', secrets: SECRETS, references: 'allow', options: KEY } as const;
  const backingKey = { backingOptions: [KEY] };

  beforeAll(async () => {
    const options = { encryptFormat: 'luks', encryptKeySecret: 's', encryptIterTime: 10 };
    await createImage(path('base'), { format: 'qcow2', size: bytes.length, options, secrets: SECRETS });
    await churn('base', bytes, random);
    const backing = { name: 'base', format: 'qcow2' };
    await createImage(path('top'), {
      format: 'qcow2',
      size: bytes.length,
      options,
      backing,
      secrets: SECRETS,
      backingUnchecked: true,
    });
  }, MINUTE);

  it('is read by both, each layer with its key', async () => {
    await using image = await openImage(path('top'), { ...reference, ...backingKey, readOnly: false });
    const data = noise(random, 100 * KiB);
    await image.write(70_000, data);
    bytes.set(data, 70_000);
    expect(Buffer.from(await image.read(0, MiB)).equals(bytes)).toBe(true);
    await image.close();
    writeFileSync(path('expected.raw'), bytes);
    const chain = `${qemuOptions('top')},backing.encrypt.key-secret=s`;
    const raw = `driver=raw,file.driver=file,file.filename=${path('expected.raw')}`;
    await mustRun('qemu-img', 'compare', ...OBJECTS, '--image-opts', raw, chain);
  });

  it('is converted, rebased and committed', async () => {
    const target = {
      name: path('flat'),
      format: 'qcow2',
      options: { encryptFormat: 'luks', encryptKeySecret: 'n', encryptIterTime: 10 },
    };
    await convertImage([{ name: path('top'), options: KEY, ...backingKey }], target, {
      secrets: SECRETS,
      references: 'allow',
    });
    writeFileSync(path('expected.raw'), bytes);
    await mustRun(
      'qemu-img',
      'compare',
      ...OBJECTS,
      '--image-opts',
      `driver=raw,file.driver=file,file.filename=${path('expected.raw')}`,
      qemuOptions('flat', 'n'),
    );
    await commitImage(path('top'), { ...reference, ...backingKey });
    await expectContent('base', bytes);
    await checkClean('base');
    await rebaseImage(path('top'), { ...reference, ...backingKey, to: undefined });
    await expectContent('top', bytes);
    await checkClean('top');
    const other = { options: { encryptKeySecret: 'n' }, secrets: SECRETS };
    await using a = await openImage(path('flat'), other);
    await using b = await openImage(path('top'), { options: KEY, secrets: SECRETS });
    expect(await compareImages(a, b)).toMatchObject({ result: 'identical' });
  });
});

describeWithQemu('key slots', () => {
  it(
    'are made and erased by both, and both open what the other made (M-15)',
    async () => {
      const options = { encryptFormat: 'luks', encryptKeySecret: 's', encryptIterTime: 10 };
      await createImage(path('keys'), { format: 'qcow2', size: MiB, options, secrets: SECRETS });
      const bytes = Buffer.alloc(MiB);
      await churn('keys', bytes, seededRandom(SEED + 4));
      await amendImage(
        path('keys'),
        { encryptState: 'active', encryptNewSecret: 'n', encryptIterTime: 10, encryptKeyslot: 5 },
        { options: KEY, secrets: SECRETS },
      );
      await mustRun('qemu-img', 'compare', ...OBJECTS, '--image-opts', qemuOptions('keys'), qemuOptions('keys', 'n'));
      await mustRun(
        'qemu-img',
        'amend',
        ...OBJECTS,
        '-o',
        'encrypt.state=inactive,encrypt.old-secret=s',
        '--image-opts',
        qemuOptions('keys', 'n'),
      );
      await expect(openImage(path('keys'), { options: KEY, secrets: SECRETS })).rejects.toMatchObject({
        reason: 'luks.password',
      });
      await mustRun(
        'qemu-img',
        'amend',
        ...OBJECTS,
        '-o',
        'encrypt.state=active,encrypt.new-secret=s,encrypt.iter-time=10',
        '--image-opts',
        qemuOptions('keys', 'n'),
      );
      const before = readFileSync(path('keys'));
      await amendImage(
        path('keys'),
        { encryptState: 'inactive', encryptKeyslot: 5 },
        { options: KEY, secrets: SECRETS },
      );
      expect(readFileSync(path('keys')).equals(before)).toBe(false);
      await expectContent('keys', bytes);
      await checkClean('keys');
      await expect(
        amendImage(
          path('keys'),
          { encryptState: 'inactive', encryptOldSecret: 's' },
          { options: KEY, secrets: SECRETS },
        ),
      ).rejects.toMatchObject({ reason: 'luks.all-slots' });
    },
    MINUTE,
  );
});
