/** The overlap checks, switch by switch: for each structure a crafted image whose next write would land on it, and on nothing else. The switch alone
 *  stops that write, every other one lets it through; templates are unions of switches. */
import { describe, expect, it } from 'vitest';
import type { OptionsInput } from '../../../src/base/options.ts';
import type { openOptions } from '../../../src/formats/qcow2/options.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { COPIED, Patient } from '../../interop/qcow2-damages.ts';
import { openDisk, pattern, peek } from '../../support/qcow2-parts.ts';
import { createQcow2Bytes, openQcow2 } from '../../support/qcow2-under-test.ts';

type Input = OptionsInput<typeof openOptions>;
const KiB = 1024;
const MiB = 1024 * KiB;
const CLUSTER = 4096;
const SIZE = 64 * KiB;

/** A disk with two guest clusters, a snapshot before the second write, and a bitmap directory of one entry. */
async function image(): Promise<Patient> {
  const file = await createQcow2Bytes(SIZE, { clusterSize: CLUSTER }, false);
  const node = await openQcow2(file, {});
  await node.write(0, pattern(2 * CLUSTER));
  await node.exclusive(async () => void (await node.format.snapshots?.create({ name: 's', dateSeconds: 1 })));
  await node.write(0, pattern(2 * CLUSTER, 2));
  await node.close();
  const patient = new Patient(Buffer.from(file.bytes()));
  addBitmapDirectory(patient);
  return patient;
}

const DIRECTORY = 40;

/** An extension that names clusters at the end of the file; nothing reads them before something is written. */
function addBitmapDirectory(patient: Patient): void {
  const bytes = Buffer.alloc((DIRECTORY + 3) * CLUSTER);
  patient.bytes.copy(bytes);
  patient.bytes = bytes;
  let at = bytes.readUInt32BE(100);
  while (bytes.readUInt32BE(at) !== 0) at += 8 + Math.ceil(bytes.readUInt32BE(at + 4) / 8) * 8;
  bytes.writeUInt32BE(0x2385_2875, at);
  bytes.writeUInt32BE(24, at + 4);
  bytes.writeUInt32BE(1, at + 8);
  patient.setU64(at + 16, 32);
  patient.setU64(at + 24, DIRECTORY * CLUSTER);
  patient.setU64(88, 1);
  const entry = DIRECTORY * CLUSTER;
  patient.setU64(entry, (DIRECTORY + 1) * CLUSTER);
  bytes.writeUInt32BE(1, entry + 8);
  bytes.writeUInt8(1, entry + 16);
  bytes.writeUInt8(16, entry + 17);
  bytes.writeUInt16BE(1, entry + 18);
  bytes.write('b', entry + 24);
  patient.setU64((DIRECTORY + 1) * CLUSTER, 0);
  patient.setRefcount(DIRECTORY, 1);
  patient.setRefcount(DIRECTORY + 1, 1);
}

const SWITCHES = {
  overlapMainHeader: ['main-header', 'qcow2_header'],
  overlapActiveL1: ['active-l1', 'active L1 table'],
  overlapActiveL2: ['active-l2', 'active L2 table'],
  overlapRefcountTable: ['refcount-table', 'refcount table'],
  overlapRefcountBlock: ['refcount-block', 'refcount block'],
  overlapSnapshotTable: ['snapshot-table', 'snapshot table'],
  overlapInactiveL1: ['inactive-l1', 'inactive L1 table'],
  overlapInactiveL2: ['inactive-l2', 'inactive L2 table'],
  overlapBitmapDirectory: ['bitmap-directory', 'bitmap directory'],
} as const satisfies Partial<Record<keyof Input, readonly [string, string]>>;
type Switch = keyof typeof SWITCHES;
const NAMES = Object.keys(SWITCHES) as Switch[];

const TEMPLATES: Readonly<Record<string, readonly Switch[]>> = {
  none: [],
  constant: [
    'overlapMainHeader',
    'overlapActiveL1',
    'overlapRefcountTable',
    'overlapSnapshotTable',
    'overlapBitmapDirectory',
  ],
  cached: NAMES.filter((name) => name !== 'overlapInactiveL2'),
  all: NAMES,
};

const MASK = 0x00ff_ffff_ffff_fe00n;

/** A crafted image, and where a guest write leads to that structure: guest cluster 1 is an own cluster that lies on it. The header is cluster 0, which no
 *  such entry can name; there it is the L1 table that is said to lie on it, and the write makes an entry of it. */
async function crafted(to: Switch): Promise<readonly [file: MemoryStore, at: number]> {
  if (to === 'overlapMainHeader') {
    const file = await createQcow2Bytes(8 * MiB, { clusterSize: CLUSTER }, false);
    const patient = new Patient(Buffer.from(file.bytes()));
    patient.setU64(40, 0);
    return [MemoryStore.from(new Uint8Array(patient.bytes), { pageSize: 512 }), 2 * MiB];
  }
  const patient = await image();
  const places: Record<typeof to, number> = {
    overlapActiveL1: patient.l1,
    overlapActiveL2: patient.l2(0),
    overlapRefcountTable: patient.refcountTable,
    overlapRefcountBlock: patient.refcountBlock,
    overlapSnapshotTable: patient.snapshots,
    overlapInactiveL1: patient.snapshotL1,
    overlapInactiveL2: Number(patient.u64(patient.snapshotL1) & MASK),
    overlapBitmapDirectory: DIRECTORY * CLUSTER,
  };
  patient.setEntry(1, COPIED | BigInt(places[to]));
  return [MemoryStore.from(new Uint8Array(patient.bytes), { pageSize: 512 }), CLUSTER];
}

/** What that write does under the given options. */
async function write(
  to: Switch,
  options: Input,
): Promise<{ refused: string | undefined; marked: boolean; events: number }> {
  const [file, at] = await crafted(to);
  const { node, events } = await openDisk(file, { options });
  let refused: string | undefined;
  try {
    await node.write(at, pattern(512, 9));
    await node.flush();
  } catch (error) {
    refused = /overlaps with (.*)\)/.exec((error as Error).message)?.[1] ?? String(error);
  }
  await node.close().catch(() => undefined);
  // where nothing stops it, the header may be gone
  const bits = await peek(file.reopen(), 72);
  return {
    refused,
    marked: (bits / 2n) % 2n === 1n,
    events: events.filter(({ type }) => type === 'corrupted').length,
  };
}

describe.each(NAMES)('%s', (name) => {
  const [option, told] = SWITCHES[name];

  it(`alone stops a write onto its structure (overlap-check.${option}) (Q-076)`, async () => {
    const outcome = await write(name, { overlapCheck: 'none', [name]: true });
    expect(outcome).toEqual({ refused: told, marked: true, events: 1 });
  });

  it('is the only one that does', async () => {
    const others = Object.fromEntries(NAMES.map((other) => [other, other !== name]));
    // with all others on, it is no other that stops the write
    const outcome = await write(name, { ...others });
    expect(outcome).toEqual({ refused: undefined, marked: false, events: 0 });
  });

  it.each(Object.keys(TEMPLATES))('is in the template %s or not, as in QEMU (Q-074)', async (template) => {
    const { refused } = await write(name, { overlapCheck: template as 'none' });
    expect(refused).toBe(TEMPLATES[template]?.includes(name) === true ? told : undefined);
  });
});
