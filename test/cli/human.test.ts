import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  fixed2,
  general3,
  humanCheck,
  humanInfo,
  humanMapRow,
  humanSize,
  jsonCheck,
  jsonInfo,
  jsonMapRow,
  snapshotTable,
} from '../../src/cli/render/human.ts';
import { prettyJson } from '../../src/cli/render/json.ts';

describe('sizes for people', () => {
  it.each([
    [0, '0 B'],
    [512, '512 B'],
    [999, '999 B'],
    [1000, '0.977 KiB'],
    [1536, '1.5 KiB'],
    [197120, '192 KiB'],
    [198144, '194 KiB'],
    [1022976, '999 KiB'],
    [1023488, '1e+03 KiB'],
    [1024000, '0.977 MiB'],
    [10235904, '9.76 MiB'],
    [67108864, '64 MiB'],
    [3 * 2 ** 40, '3 TiB'],
    [2 ** 53 - 1, '8 PiB'],
  ])('shows %s bytes as %s', (bytes, text) => {
    expect(humanSize(bytes)).toBe(text);
  });

  it('rounds halves to even, as C does', () => {
    expect(general3(192.5)).toBe('192');
    expect(general3(193.5)).toBe('194');
    expect(general3(1.125)).toBe('1.12');
    expect(general3(0.000012345)).toBe('1.23e-05');
    expect(fixed2(3.125)).toBe('3.12');
    expect(fixed2(9.375)).toBe('9.38');
    expect(fixed2(6.25)).toBe('6.25');
    expect(fixed2(100)).toBe('100.00');
  });

  it('is never off by more than half of the last digit shown', () => {
    fc.assert(
      fc.property(fc.double({ min: 0.001, max: 999, noNaN: true }), (value) => {
        const shown = Number(general3(value));
        expect(Math.abs(shown - value)).toBeLessThanOrEqual(0.5 * 10 ** (Math.floor(Math.log10(value)) - 2) * 1.0001);
      }),
    );
  });
});

const INFO = {
  filename: 'b.qcow2',
  format: 'qcow2',
  virtualSize: 67108864,
  actualSize: 200704,
  clusterSize: 65536,
  dirty: false,
};

describe('info', () => {
  it('has no more lines than there are facts', () => {
    expect(humanInfo({ filename: 'a', format: 'raw', virtualSize: 512 })).toBe(
      'image: a\nfile format: raw\nvirtual size: 512 B (512 bytes)\ndisk size: unavailable\n',
    );
  });

  it('tells where a backing file really is when that is not its recorded name', () => {
    const backing = { ...INFO, backingFilename: 'a.qcow2', backingFormat: 'qcow2' };
    expect(humanInfo({ ...backing, fullBackingFilename: 'a.qcow2' })).toContain('\nbacking file: a.qcow2\n');
    expect(humanInfo({ ...backing, fullBackingFilename: '/x/a.qcow2' })).toContain(
      '\nbacking file: a.qcow2 (actual path: /x/a.qcow2)\nbacking file format: qcow2\n',
    );
    expect(humanInfo(backing)).toContain('\nbacking file: a.qcow2 (cannot determine actual path)\n');
  });

  it('shows nested facts of the format with indices and without dashes', () => {
    const data = {
      'refcount-bits': 16,
      bitmaps: [
        { name: 'b0', flags: ['auto'], granularity: 65536 },
        { name: 'b1', flags: [], granularity: 4096 },
      ],
    };
    expect(humanInfo({ ...INFO, dirty: true, encrypted: true, specific: { type: 'qcow2', data } })).toBe(
      `image: b.qcow2
file format: qcow2
virtual size: 64 MiB (67108864 bytes)
disk size: 196 KiB
encrypted: yes
cluster_size: 65536
cleanly shut down: no
Format specific information:
    bitmaps:
        [0]:
            flags:
                [0]: auto
            name: b0
            granularity: 65536
        [1]:
            flags:
            name: b1
            granularity: 4096
    refcount bits: 16
`,
    );
  });

  it('leaves out of JSON what the image does not have', () => {
    expect(Object.keys(JSON.parse(prettyJson(jsonInfo(INFO))) as object)).toEqual([
      'virtual-size',
      'filename',
      'cluster-size',
      'format',
      'actual-size',
      'dirty-flag',
    ]);
  });

  it('lays out snapshots in columns, and their clocks in two numbers of JSON', () => {
    const snapshot = {
      id: '1',
      name: 's1',
      vmStateSize: 1536,
      dateSeconds: new Date(2026, 10, 20, 8, 48, 16).getTime() / 1000,
      dateNanoseconds: 5,
      vmClockNanoseconds: 3_723_004_000_001n,
      icount: 7n,
    };
    expect(snapshotTable([snapshot])).toEqual([
      'ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT',
      '1         s1                1.5 KiB 2026-11-20 08:48:16 01:02:03.004          7',
    ]);
    const json = JSON.parse(prettyJson(jsonInfo({ ...INFO, snapshots: [snapshot] }))) as { snapshots: unknown[] };
    expect(json.snapshots[0]).toMatchObject({ 'vm-clock-sec': 3723, 'vm-clock-nsec': 4_000_001, icount: 7 });
  });
});

const CHECK = {
  filename: 'a',
  format: 'qcow2',
  checkErrors: 0,
  corruptions: 0,
  leaks: 0,
  corruptionsFixed: 0,
  leaksFixed: 0,
  imageEndOffset: 458752,
  totalClusters: 16,
  allocatedClusters: 2,
  fragmentedClusters: 0,
  compressedClusters: 0,
};

describe('check', () => {
  it('says that nothing was found, and how the image is used', () => {
    expect(humanCheck(CHECK)).toBe(
      'No errors were found on the image.\n' +
        '2/16 = 12.50% allocated, 0.00% fragmented, 0.00% compressed clusters\nImage end offset: 458752\n',
    );
  });

  it('leaves the ratio out when nothing is allocated', () => {
    expect(humanCheck({ ...CHECK, allocatedClusters: 0 })).not.toContain('%');
  });

  it('tells corruptions, leaks and failures apart', () => {
    const text = humanCheck({
      ...CHECK,
      corruptions: 2,
      leaks: 1,
      checkErrors: 3,
      imageEndOffset: 0,
      totalClusters: 0,
    });
    expect(text).toBe(
      '\n2 errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n' +
        '\n1 leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n' +
        '\n3 internal errors have occurred during the check.\n',
    );
  });

  it('leaves counters of 0 out of JSON, except that of failures', () => {
    expect(Object.keys(JSON.parse(prettyJson(jsonCheck({ ...CHECK, leaksFixed: 1 }))) as object)).toEqual([
      'image-end-offset',
      'total-clusters',
      'check-errors',
      'leaks-fixed',
      'allocated-clusters',
      'filename',
      'format',
    ]);
  });
});

describe('map', () => {
  const row = {
    start: 0,
    length: 0x20000,
    depth: 0,
    present: true,
    zero: false,
    data: true,
    compressed: false,
    hostOffset: 0x50000,
    node: '/path',
  };

  it('prints a zero without 0x, as C does', () => {
    expect(humanMapRow(row)).toBe('0               0x20000         0x50000         /path\n');
  });

  it('lists only what holds data that is not zero', () => {
    expect(humanMapRow({ ...row, zero: true })).toBe('');
    expect(humanMapRow({ ...row, data: false })).toBe('');
  });

  it('has an offset only where there is one, and the member of newer QEMU only when asked', () => {
    expect(jsonMapRow({ ...row, hostOffset: undefined }, false)).toBe(
      '{ "start": 0, "length": 131072, "depth": 0, "present": true, "zero": false, "data": true}',
    );
    expect(jsonMapRow(row, true)).toBe(
      '{ "start": 0, "length": 131072, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 327680}',
    );
  });
});
