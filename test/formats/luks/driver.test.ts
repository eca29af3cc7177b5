/** luks: creation, opening with and without a password, reading and writing, size, facts. */
import { describe, expect, it, vi } from 'vitest';
import { createCodecs } from '../../../src/codec/create.ts';
import { luks } from '../../../src/formats/luks/driver.ts';
import { raw } from '../../../src/formats/raw/driver.ts';
import { createImage } from '../../../src/image/create.ts';
import type { Image } from '../../../src/image/image.ts';
import { type OpenImageOptions, openImage } from '../../../src/image/open.ts';
import { convertImage } from '../../../src/tools/convert.ts';
import { imageInfo } from '../../../src/tools/info.ts';
import { measureImage } from '../../../src/tools/measure.ts';
import { seeded } from '../../crypto/support.ts';
import { MemoryFiles } from '../../image/support/memory-protocol.ts';
import { luksFile, luksHeader, PASSWORD } from '../../support/luks-under-test.ts';

const PAYLOAD = 2_068_480;
const secrets = { key: PASSWORD, other: 'wrong' };

function driversOf(files: MemoryFiles) {
  return { formats: [luks, raw], protocols: [files.protocol], secrets };
}

function open(files: MemoryFiles, name: string, options: Partial<OpenImageOptions> = {}): Promise<Image> {
  return openImage(name, { ...driversOf(files), options: { keySecret: 'key' }, ...options });
}

async function withImage(size: number): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  files.add('a.luks', (await luksFile(size)).bytes());
  return files;
}

describe('creating a luks image', () => {
  it('makes a header and a payload of the size that was asked (M-16)', async () => {
    const files = new MemoryFiles();
    const options = { keySecret: 'key', iterTime: 0 };
    await createImage('a.luks', { ...driversOf(files), format: 'luks', size: 10_000, options });
    expect(files.bytes('a.luks').length).toBe(PAYLOAD + 10_000);
    await using image = await open(files, 'a.luks', { readOnly: false });
    // The last sector is rounded up, as raw disks are.
    expect([image.format, image.virtualSize]).toEqual(['luks', 10_240]);
    await image.write(0, seeded(10_240));
    expect(await image.read(0, 10_240)).toEqual(seeded(10_240));
    expect(files.bytes('a.luks').length).toBe(PAYLOAD + 10_240);
  });

  it('makes a detached header of its own, with which another file is the disk (M-17)', async () => {
    const files = new MemoryFiles();
    const options = { keySecret: 'key', iterTime: 0, detachedHeader: true, cipherAlg: 'aes-128' };
    await createImage('h.luks', { ...driversOf(files), format: 'luks', size: 4096, options });
    expect(files.bytes('h.luks').length).toBe(1_052_672);
    files.add('disk', new Uint8Array(4096));
    const detached = { format: 'luks', options: { keySecret: 'key', header: 'h.luks' } };
    {
      await using image = await open(files, 'disk', { ...detached, readOnly: false });
      expect(image.virtualSize).toBe(4096);
      await image.write(0, seeded(4096));
    }
    expect(files.bytes('disk')).not.toEqual(seeded(4096));
    await using image = await open(files, 'disk', detached);
    expect(await image.read(0, 4096)).toEqual(seeded(4096));
    const { specific } = await image.info();
    expect(specific?.data).toMatchObject({ 'detached-header': true, 'payload-offset': 0, 'cipher-alg': 'aes-128' });
    // Its header is not in the file.
    await expect(open(files, 'disk', { format: 'luks' })).rejects.toMatchObject({ reason: 'luks.magic' });
    await expect(
      open(files, 'disk', { format: 'luks', options: { keySecret: 'key', header: 'gone' } }),
    ).rejects.toMatchObject({ reason: 'image.header-file' });
  });

  it.each([
    [{}, 'luks.key-secret'],
    [{ keySecret: 'nobody' }, 'secret.missing'],
    [{ keySecret: 'key', cipherAlg: 'serpent-256' }, 'luks.cipher'],
    [{ keySecret: 'key', cipherAlg: 'rot13' }, 'option.choice'],
    [{ keySecret: 'key', cipherAlg: 'aes-192', cipherMode: 'cbc' }, 'luks.key-bytes'],
    [{ keySecret: 'key', ivgenAlg: 'essiv', ivgenHashAlg: 'sha1' }, 'luks.essiv'],
    [{ keySecret: 'key', iterTime: 1e12 }, 'luks.iter-time'],
  ])('refuses %o and leaves nothing behind', async (options, reason) => {
    const files = new MemoryFiles();
    const given = { ...driversOf(files), format: 'luks', size: 4096, options };
    await expect(createImage('a.luks', given)).rejects.toMatchObject({ reason });
    expect(files.names()).toEqual([]);
  });
});

describe('opening a luks image', () => {
  it('finds it by its magic, and a second version of the format to be something else (M-16)', async () => {
    const head = (await luksHeader()).slice(0, 2048);
    const probe = (bytes: Uint8Array): number => luks.probe({ head: bytes, fileSize: 4096, name: 'a' });
    expect(probe(head)).toBe(100);
    expect(probe(head.subarray(0, 7))).toBe(0);
    head[7] = 2;
    expect(probe(head)).toBe(0);
  });

  it.each([
    ['ENCRYPTED', 'luks.key-secret', {}],
    ['NOT_FOUND', 'secret.missing', { keySecret: 'nobody' }],
    ['ENCRYPTED', 'luks.password', { keySecret: 'other' }],
  ])('fails with %s, reason %s, for the options %o', async (code, reason, options) => {
    const files = await withImage(4096);
    await expect(open(files, 'a.luks', { options })).rejects.toMatchObject({ code, reason });
    expect(files.open).toEqual([]);
  });

  it('tells facts without a key, and guards the data then', async () => {
    const files = await withImage(4096);
    const info = await imageInfo('a.luks', { formats: [luks, raw], protocols: [files.protocol] });
    expect(info).toMatchObject({ format: 'luks', virtualSize: 4096, encrypted: true, dirty: false });
    expect(info.specific).toMatchObject({ type: 'luks', data: { 'payload-offset': PAYLOAD, 'cipher-mode': 'xts' } });
    await using image = await open(files, 'a.luks', { options: {}, metadataOnly: true, readOnly: false });
    await expect(image.read(0, 512)).rejects.toMatchObject({ code: 'ENCRYPTED', reason: 'luks.locked' });
    await expect(image.write(0, new Uint8Array(512))).rejects.toMatchObject({ reason: 'luks.locked' });
  });

  it('calls everything data without a place, holes of the file too', async () => {
    const files = await withImage(1_000_000);
    await using image = await open(files, 'a.luks');
    const extents = [];
    for await (const { start, length, data, zero, hostOffset } of image.extents()) {
      extents.push({ start, length, data, zero, hostOffset });
    }
    expect(extents).toEqual([{ start: 0, length: 1_000_448, data: true, zero: false, hostOffset: undefined }]);
  });
});

describe('the disk in a luks image', () => {
  it('is written in place, parts of sectors included, and zeroed by writing', async () => {
    const files = await withImage(8192);
    await using image = await open(files, 'a.luks', { readOnly: false });
    const model = await image.read(0, 8192);
    const patch = async (at: number, bytes: Uint8Array): Promise<void> => {
      await image.write(at, bytes);
      model.set(bytes, at);
    };
    await patch(100, seeded(5));
    await patch(500, seeded(3000));
    await image.writeZeroes(1000, 2000);
    model.fill(0, 1000, 3000);
    await patch(7000, seeded(1192));
    expect(await image.read(0, 8192)).toEqual(model);
    // A discard does nothing: encrypted sectors cannot be holes.
    await image.discard(0, 8192);
    expect(await image.read(0, 8192)).toEqual(model);
    await expect(image.write(8192, new Uint8Array(1))).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  });

  it('grows and shrinks with its file, header kept', async () => {
    const files = await withImage(8192);
    await using image = await open(files, 'a.luks', { readOnly: false });
    await image.write(0, seeded(8192));
    await image.node.truncate(20_480);
    expect([image.virtualSize, files.bytes('a.luks').length]).toEqual([20_480, PAYLOAD + 20_480]);
    await image.node.truncate(4096);
    expect(await image.read(0, 4096)).toEqual(seeded(8192).subarray(0, 4096));
    await expect(async () => image.node.format?.resize?.(8192, 'metadata')).rejects.toMatchObject({
      reason: 'luks.preallocation',
    });
    await expect(async () => image.node.truncate(Number.MAX_SAFE_INTEGER)).rejects.toMatchObject({ code: 'TOO_LARGE' });
  });

  it('is converted from and to, with the new image opened by the secret that it was created with', async () => {
    const files = new MemoryFiles();
    const disk = seeded(300_000);
    disk.fill(0, 100_000, 200_000);
    files.add('a.raw', disk);
    const target = { name: 'a.luks', format: 'luks', options: { keySecret: 'key', iterTime: 0 } };
    await convertImage(['a.raw'], target, { ...driversOf(files), probeBacking: true });
    await using source = await open(files, 'a.luks');
    await convertImage([source], { name: 'b.raw', format: 'raw' }, driversOf(files));
    expect(files.bytes('b.raw').subarray(0, 300_000)).toEqual(disk);
  });

  it('needs its header and every byte', async () => {
    const options = { formats: [luks], format: 'luks', size: 1000 };
    const withKey = { ...options, options: { keySecret: 'key', cipherAlg: 'aes-128' } };
    expect(await measureImage(withKey)).toEqual({ required: 1_053_672, fullyAllocated: 1_053_672 });
    await expect(measureImage(options)).rejects.toMatchObject({ reason: 'luks.key-secret' });
  });
});

describe('the key of a luks image', () => {
  it('is given to threads when the image is opened, and taken back when it closes', async () => {
    const files = await withImage(4 * 1024 * 1024);
    const log: string[] = [];
    const codecs = createCodecs({ workers: 0 });
    vi.spyOn(codecs, 'sectors').mockImplementation((spec, key) => {
      log.push(`open ${spec.mode} ${key.length}`);
      return {
        encrypt: (from, into) => {
          log.push(`encrypt ${from.length}`);
          into.set(from);
          return Promise.resolve();
        },
        decrypt: (bytes) => {
          log.push(`decrypt ${bytes.length}`);
          return Promise.resolve();
        },
        close: async () => {
          log.push('close');
        },
      };
    });
    const image = await open(files, 'a.luks', { readOnly: false, codecs });
    await image.write(512, seeded(1024));
    expect(await image.read(512, 1024)).toEqual(seeded(1024));
    await image.close();
    expect(log).toEqual(['open xts 64', 'encrypt 1024', 'decrypt 1024', 'close']);
    expect(() => image.node.read(0, new Uint8Array(512))).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  });
});

describe('amending a luks image', () => {
  const amended = async (files: MemoryFiles, changes: Record<string, unknown>, force = false): Promise<void> => {
    await using image = await open(files, 'a.luks', { readOnly: false });
    await image.amend(changes, { force });
  };
  const opens = async (files: MemoryFiles, keySecret: string): Promise<boolean> => {
    try {
      await (await open(files, 'a.luks', { options: { keySecret } })).close();
      return true;
    } catch {
      return false;
    }
  };

  it('adds a key in a free slot, or in the one that is named, and erases by password or by number', async () => {
    const files = await withImage(4096);
    const steps: string[] = [];
    {
      await using image = await open(files, 'a.luks', { readOnly: false });
      await image.write(0, seeded(4096));
      const run = { onProgress: ({ done, total }: { done: number; total: number }) => steps.push(`${done}/${total}`) };
      await image.amend({ state: 'active', newSecret: 'other', iterTime: 0 }, run);
      // The image stays open, with what it was opened with.
      expect(await image.read(0, 4096)).toEqual(seeded(4096));
      await image.amend({ state: 'active', newSecret: 'other', keyslot: 7, iterTime: 0 });
    }
    expect(steps).toEqual(['0/1', '1/1']);
    expect(await opens(files, 'other')).toBe(true);
    await amended(files, { state: 'inactive', keyslot: 0 });
    expect([await opens(files, 'key'), await opens(files, 'other')]).toEqual([false, true]);
    await using image = await open(files, 'a.luks', { readOnly: false, options: { keySecret: 'other' } });
    await image.amend({ state: 'active', newSecret: 'key', iterTime: 0 });
    await image.amend({ state: 'inactive', oldSecret: 'other' });
    expect([await opens(files, 'key'), await opens(files, 'other')]).toEqual([true, false]);
    expect(await image.read(0, 4096)).toEqual(seeded(4096));
  });

  it.each([
    [{}, 'luks.amend-state'],
    [{ state: 'gone' }, 'luks.amend-state-value'],
    [{ state: 'active' }, 'luks.amend-new-missing'],
    [{ state: 'active', newSecret: 'other', oldSecret: 'key' }, 'luks.amend-old-given'],
    [{ state: 'active', newSecret: 'nobody' }, 'secret.missing'],
    [{ state: 'active', newSecret: 'other', keyslot: 8 }, 'luks.slot'],
    [{ state: 'active', newSecret: 'other', keyslot: 0 }, 'luks.slot-active'],
    [{ state: 'inactive' }, 'luks.erase-what'],
    [{ state: 'inactive', newSecret: 'other', keyslot: 0 }, 'luks.amend-new-given'],
    [{ state: 'inactive', keyslot: 0, iterTime: 10 }, 'luks.amend-iter-given'],
    [{ state: 'inactive', oldSecret: 'nobody' }, 'secret.missing'],
    [{ state: 'inactive', oldSecret: 'other' }, 'luks.no-match'],
    [{ state: 'inactive', keyslot: 0, oldSecret: 'other' }, 'luks.old-password'],
    [{ state: 'inactive', keyslot: 3 }, 'luks.slot-inactive'],
    [{ state: 'inactive', keyslot: 0 }, 'luks.last-slot'],
    [{ state: 'inactive', oldSecret: 'key' }, 'luks.all-slots'],
  ])('refuses %o for the reason %s, and changes nothing', async (changes, reason) => {
    const files = await withImage(512);
    const before = files.bytes('a.luks');
    await expect(amended(files, changes)).rejects.toMatchObject({ reason });
    expect(Buffer.compare(files.bytes('a.luks'), before)).toBe(0);
  });

  it('erases the last key only when it is forced to', async () => {
    const files = await withImage(512);
    await amended(files, { state: 'inactive', keyslot: 0 }, true);
    expect(await opens(files, 'key')).toBe(false);
    // What was there of it is overwritten.
    const header = await luksHeader();
    expect(Buffer.compare(files.bytes('a.luks').subarray(4096, 260_096), header.subarray(4096, 260_096))).not.toBe(0);
  });

  it('needs an image that is open for writing', async () => {
    const files = await withImage(512);
    await using image = await open(files, 'a.luks');
    await expect(image.amend({ state: 'inactive', keyslot: 0 })).rejects.toMatchObject({ code: 'READ_ONLY' });
  });
});
