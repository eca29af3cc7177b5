import { describe, expect, it } from 'vitest';
import { KiB, MiB } from '../../../src/base/sizes.ts';
import { addCow } from '../../../src/formats/add-cow/driver.ts';
import { readHeader } from '../../../src/formats/add-cow/header.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { createAddCowFiles, openAddCow } from '../../support/add-cow-under-test.ts';
import { failureOf } from './support.ts';

type Edit = (bytes: Uint8Array, view: DataView) => Uint8Array | undefined;

async function edited(compat: 'v9' | 'v20', edit: Edit, clusterSize = 4096): Promise<MemoryStore> {
  const { file } = await createAddCowFiles(100 * KiB, { compat, clusterSize }, true);
  const bytes = file.bytes();
  const result = edit(bytes, new DataView(bytes.buffer)) ?? bytes;
  return MemoryStore.from(result, { name: 'disk', readOnly: true });
}

const u32 =
  (offset: number, value: number): Edit =>
  (_, view) => {
    view.setUint32(offset, value, true);
    return undefined;
  };
const fill =
  (start: number, end: number, byte: number): Edit =>
  (bytes) => {
    bytes.fill(byte, start, end);
    return undefined;
  };
const cut =
  (length: number): Edit =>
  (bytes) =>
    bytes.subarray(0, length);
const text = (offset: number, value: string): Edit => {
  const encoded = new TextEncoder().encode(value);
  return (bytes) => {
    bytes.set(encoded, offset);
    return undefined;
  };
};

interface Refused {
  readonly what: string;
  readonly edit: Edit;
  readonly reason: string;
  readonly code?: string;
  /** Words of the message: the value and its bound. */
  readonly says: RegExp;
}

describe('A-002, A-014, A-015: a hostile v9 header', () => {
  const refused: readonly Refused[] = [
    { what: 'another magic', edit: fill(7, 8, 0), reason: 'magic', code: 'WRONG_FORMAT', says: /neither magic/ },
    { what: 'a file of the magic alone', edit: cut(8), reason: 'header-short', says: /8 bytes.* 2560/ },
    { what: 'a file one byte short of its header', edit: cut(2559), reason: 'header-short', says: /2559 bytes.* 2560/ },
    {
      what: 'version 2',
      edit: fill(11, 12, 2),
      reason: 'version',
      code: 'UNSUPPORTED',
      says: /unsupported feature: ADD-COW version 2; 1 is known/,
    },
    {
      what: 'version 0',
      edit: fill(11, 12, 0),
      reason: 'version',
      code: 'UNSUPPORTED',
      says: /ADD-COW version 0/,
    },
    { what: 'no image file', edit: fill(1036, 1037, 0), reason: 'image-missing', says: /names no image file/ },
    {
      what: 'an image file name without NUL',
      edit: fill(1036, 2060, 0x61),
      reason: 'image-name-end',
      says: /image file name does not end within 1024 bytes/,
    },
    {
      what: 'a backing file name without NUL',
      edit: fill(12, 1036, 0x61),
      reason: 'backing-name-end',
      says: /backing file name does not end within 1024 bytes/,
    },
  ];
  for (const { what, edit, reason, code = 'CORRUPT', says } of refused) {
    it(`with ${what} is refused as add-cow.${reason}`, async () => {
      const file = await edited('v9', edit);
      const failure = await failureOf(() => readHeader(file, 'some.add-cow'));
      expect(failure).toMatchObject({ reason: `add-cow.${reason}`, code });
      expect(failure.message).toMatch(/^add-cow "some\.add-cow": /);
      expect(failure.message).toMatch(says);
    });
  }

  it('with names of 1023 bytes is read', async () => {
    const file = await edited('v9', (bytes) => {
      bytes.fill(0x61, 12, 1035);
      bytes.fill(0x62, 1036, 2059);
      return undefined;
    });
    const header = await readHeader(file, 'disk');
    expect([header.backing?.text, header.image.text]).toEqual(['a'.repeat(1023), 'b'.repeat(1023)]);
  });

  it('with anything in its reserved bytes is read', async () => {
    expect((await readHeader(await edited('v9', fill(2060, 2560, 0xff)), 'disk')).version).toBe('v9');
  });
});

describe('a hostile V20 header', () => {
  const refused: readonly Refused[] = [
    { what: 'another magic', edit: fill(0, 1, 0), reason: 'magic', code: 'WRONG_FORMAT', says: /neither magic/ },
    { what: 'a file of 75 bytes', edit: cut(75), reason: 'header-short', says: /75 bytes.* 76/ },
    { what: 'a file one byte short of its header', edit: cut(4095), reason: 'header-short', says: /4095 bytes.* 4096/ },
    {
      what: 'R12: an unknown feature',
      edit: fill(31, 32, 0x80),
      reason: 'features',
      code: 'UNSUPPORTED',
      says: /unknown feature bits 8000000000000000/,
    },
    { what: 'clusters of 2 KiB', edit: u32(20, 11), reason: 'cluster-bits', says: /2\^11 .* 2\^12 to 2\^21/ },
    { what: 'clusters of 4 MiB', edit: u32(20, 22), reason: 'cluster-bits', says: /2\^22 .* 2\^12 to 2\^21/ },
    {
      what: 'clusters of 2^4294967295',
      edit: u32(20, 0xffff_ffff),
      reason: 'cluster-bits',
      says: /2\^4294967295/,
    },
    { what: 'HEADER_SIZE 0', edit: u32(40, 0), reason: 'header-size', says: /0x0 bytes, not 0x1000/ },
    { what: 'a larger HEADER_SIZE', edit: u32(40, 8192), reason: 'header-size', says: /0x2000 bytes, not 0x1000/ },
    {
      what: 'a backing name inside the fields',
      edit: u32(4, 75),
      reason: 'backing-offset',
      says: /0x4b is not within 0x4c to 0xffe/,
    },
    { what: 'a backing name at the end', edit: u32(4, 4095), reason: 'backing-offset', says: /0xfff is not within/ },
    {
      what: 'a backing name far away',
      edit: u32(4, 0xffff_fff0),
      reason: 'backing-offset',
      says: /0xfffffff0 is not within/,
    },
    { what: 'a backing name without offset', edit: u32(4, 0), reason: 'backing-half', says: /0x0 has 7 bytes; both/ },
    { what: 'a backing name without size', edit: u32(8, 0), reason: 'backing-half', says: /0x4c has 0 bytes; both/ },
    {
      what: 'a backing name as large as the header',
      edit: u32(8, 4096 - 76),
      reason: 'backing-size',
      says: /4020 bytes, the header room for less than 4020/,
    },
    {
      what: 'a backing name of 4 GiB',
      edit: u32(8, 0xffff_ffff),
      reason: 'backing-size',
      says: /4294967295 bytes/,
    },
    {
      what: 'a backing name that passes the header',
      edit: (_, view) => {
        view.setUint32(4, 4000, true);
        view.setUint32(8, 97, true);
        return undefined;
      },
      reason: 'backing-end',
      says: /0xfa0, 97 bytes, passes the end of the header at 0x1000/,
    },
    { what: 'a NUL in the backing name', edit: fill(78, 79, 0), reason: 'backing-name-nul', says: /zero byte/ },
    { what: 'an image name at 0', edit: u32(12, 0), reason: 'image-offset', says: /0x0 is not within 0x4c to 0xffe/ },
    { what: 'an image name at the end', edit: u32(12, 4095), reason: 'image-offset', says: /0xfff is not within/ },
    { what: 'no image name', edit: u32(16, 0), reason: 'image-missing', says: /names no image file/ },
    {
      what: 'an image name as large as the header',
      edit: u32(16, 4020),
      reason: 'image-size',
      says: /4020 bytes, the header room for less than 4020/,
    },
    { what: 'an image name that passes the header', edit: u32(16, 4019), reason: 'image-end', says: /passes the end/ },
    { what: 'a NUL in the image name', edit: fill(84, 85, 0), reason: 'image-name-nul', says: /zero byte/ },
    {
      what: 'a backing format without NUL',
      edit: fill(44, 60, 0x61),
      reason: 'backing-format-end',
      says: /does not end within 16 bytes/,
    },
    {
      what: 'a backing format with something behind it',
      edit: fill(59, 60, 1),
      reason: 'backing-format-padding',
      says: /backing format is not padded with zeros/,
    },
    {
      what: 'a backing format that is not ASCII',
      edit: fill(44, 45, 0xe4),
      reason: 'backing-format-text',
      says: /byte 0xe4/,
    },
    {
      what: 'a backing format and no backing file',
      edit: fill(4, 12, 0),
      reason: 'backing-format-alone',
      says: /backing format 'raw' and no backing file/,
    },
    {
      what: 'an image format without NUL',
      edit: fill(60, 76, 0x61),
      reason: 'image-format-end',
      says: /does not end within 16 bytes/,
    },
    {
      what: 'an image format with something behind it',
      edit: fill(75, 76, 1),
      reason: 'image-format-padding',
      says: /image format is not padded with zeros/,
    },
    {
      what: 'a control character in its image format',
      edit: fill(61, 62, 7),
      reason: 'image-format-text',
      says: /0x7/,
    },
    { what: 'no image format', edit: fill(60, 76, 0), reason: 'image-format-missing', says: /which format/ },
  ];
  for (const { what, edit, reason, code = 'CORRUPT', says } of refused) {
    it(`with ${what} is refused as add-cow.${reason}`, async () => {
      const file = await edited('v20', edit);
      const failure = await failureOf(() => readHeader(file, 'some.add-cow'));
      expect(failure).toMatchObject({ reason: `add-cow.${reason}`, code });
      expect(failure.message).toMatch(/^add-cow "some\.add-cow": /);
      expect(failure.message).toMatch(says);
    });
  }

  it('opens no other file and writes nothing', async () => {
    const { file, image } = await createAddCowFiles(100 * KiB, {}, true);
    await file.write(40, Uint8Array.of(1));
    const before = file.bytes();
    await failureOf(() => openAddCow(file, image, { backing: new MemoryStore() }));
    expect(file.bytes()).toEqual(before);
  });

  it('with unknown compatible features is read, and they are kept', async () => {
    const { file, image } = await createAddCowFiles(20 * KiB, {}, true);
    await file.write(32, Uint8Array.of(0xf0, 1, 2, 3, 4, 5, 6, 0x87));
    const node = await openAddCow(file, image, { backing: new MemoryStore() });
    await node.changeBacking({ name: 'other', format: 'raw' });
    await node.write(0, new Uint8Array(20 * KiB).fill(1));
    await node.detach();
    expect(file.bytes().subarray(32, 40)).toEqual(Uint8Array.of(0xf1, 1, 2, 3, 4, 5, 6, 0x87));
    await node.close();
  });

  it('R12: may have names longer than v9 could hold, at any place of its header', async () => {
    const clusterSize = 2 * MiB;
    const long = 'n'.repeat(5000);
    const file = await edited(
      'v20',
      (bytes, view) => {
        text(clusterSize - 5000, long)(bytes, view);
        view.setUint32(12, clusterSize - 5000, true);
        view.setUint32(16, 5000, true);
        return undefined;
      },
      clusterSize,
    );
    const header = await readHeader(file, 'disk');
    expect([header.image.text, header.backing?.text]).toEqual([long, 'backing']);
    expect(header.clusterSize).toBe(clusterSize);
  });

  it('without a backing format says that it is not recorded', async () => {
    expect((await readHeader(await edited('v20', fill(44, 60, 0)), 'disk')).backingFormat).toBeUndefined();
  });
});

describe('A-010: probing', () => {
  const probe = (head: Uint8Array): number => addCow.probe({ head, fileSize: head.length, name: 'x' });

  it('knows both magics, and the version of v9', async () => {
    for (const compat of ['v9', 'v20'] as const) {
      const head = (await createAddCowFiles(100 * KiB, { compat }, true)).file.bytes().subarray(0, 2048);
      expect(probe(head)).toBe(100);
      if (compat === 'v9') expect(probe(head.with(11, 2))).toBe(0);
      expect(probe(head.with(0, 0))).toBe(0);
    }
  });

  it('looks no further than the bytes it is given', () => {
    expect(probe(new Uint8Array(0))).toBe(0);
    expect(probe(new TextEncoder().encode('ACOW'))).toBe(0);
    expect(probe(Uint8Array.of(0x41, 0x44, 0x44, 0x5f, 0x43, 0x4f, 0x57, 0xff, 0, 0, 0))).toBe(0);
    expect(probe(Uint8Array.of(0x41, 0x44, 0x44, 0x5f, 0x43, 0x4f, 0x57, 0xff, 0, 0, 0, 1))).toBe(100);
  });
});
