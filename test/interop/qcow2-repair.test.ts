/** `check -r all` of every kind of damage, beside what the real qemu-img makes of it: what ours repairs is sound in the eyes of both, everything that
 *  could be read before the repair reads the same after it, and what could not be read is what it was before the damage, or zeros.
 *  The table in docs/guide/repairing.md is compared with what is seen here; COWDISK_WRITE_DOCS=1 writes it. */
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, it } from 'vitest';
import { isZero } from '../../src/bytes/zeros.ts';
import { type Image, openImage } from '../../src/node.ts';
import { describeWithQemu, qemuImg, scratchDirectory } from '../formats/qcow2/support.ts';
import { DAMAGES, type Damage, Healthy, ourCheck, Patient, theirCheck } from './qcow2-damages.ts';

const GUIDE = fileURLToPath(new URL('../../docs/guide/repairing.md', import.meta.url));
/** The disk in pieces; `undefined` where it cannot be read. */
type Content = readonly (Uint8Array | undefined)[];

async function contentOf(path: string, piece: number, snapshot?: string): Promise<Content | undefined> {
  let image: Image;
  try {
    const options = { format: 'qcow2', references: 'allow' } as const;
    image = await openImage(path, snapshot === undefined ? options : { ...options, snapshot: { name: snapshot } });
  } catch {
    return undefined;
  }
  const pieces: (Uint8Array | undefined)[] = [];
  for (let at = 0; at < image.virtualSize; at += piece) {
    try {
      pieces.push(await image.read(at, piece));
    } catch {
      pieces.push(undefined);
    }
  }
  await image.close();
  return pieces;
}

async function snapshotsOf(path: string): Promise<readonly string[]> {
  await using image = await openImage(path, { format: 'qcow2', references: 'allow' });
  return image.snapshots.map(({ name }) => name);
}

function equal(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a !== undefined && b !== undefined && Buffer.compare(a, b) === 0;
}

describeWithQemu('check -r all', () => {
  const directory = scratchDirectory();
  const path = (name: string) => join(directory, name);
  const healthy = new Healthy(directory);
  const rows: string[] = [];

  const judge = async (
    damage: Damage,
    unit: number,
    before: Content,
    damaged: Content | undefined,
  ): Promise<string> => {
    const after = (await contentOf(path('ours.qcow2'), unit)) as Content;
    qemuImg(directory, 'convert', '-f', 'qcow2', '-O', 'raw', 'ours.qcow2', 'ours.raw');
    const raw = readFileSync(path('ours.raw'));
    let zeros = 0;
    let restored = 0;
    let kept = 0;
    after.forEach((piece, index) => {
      const at = index * unit;
      expect(piece, `offset ${at}`).toBeDefined();
      expect(equal(piece, raw.subarray(at, at + unit)), `both read the same at ${at}`).toBe(true);
      const was = damage.garbage === true ? undefined : damaged?.[index];
      if (equal(piece, before[index])) {
        if (!equal(damaged?.[index], before[index])) restored++;
      } else if (was !== undefined) {
        expect(equal(piece, was), `what could be read at ${at} still can`).toBe(true);
        kept++;
      } else {
        if (damage.garbage !== true) expect(isZero(piece as Uint8Array), `what was lost at ${at} is zero`).toBe(true);
        zeros++;
      }
    });
    if (zeros > 0)
      return damage.garbage === true ? 'sound; what the place meant is lost' : 'what was lost reads as zeros';
    if (kept > 0) return 'as the damage left it';
    return restored > 0 ? 'whole again' : 'whole';
  };

  for (const damage of DAMAGES.filter(({ name }) => !name.startsWith('nothing'))) {
    it(`repairs ${damage.name}`, async () => {
      const whole = path(healthy.image(damage));
      const patient = new Patient(Buffer.from(readFileSync(whole)));
      damage.damage(patient);
      const unit = patient.clusterSize;
      writeFileSync(path('theirs.qcow2'), patient.bytes);
      copyFileSync(path('theirs.qcow2'), path('ours.qcow2'));
      const before = (await contentOf(whole, unit)) as Content;
      const damaged = await contentOf(path('ours.qcow2'), unit);
      const theirs = theirCheck(directory, 'theirs.qcow2', 'all');
      const ours = await ourCheck(path('ours.qcow2'), 'all');
      expect(ours).toMatchObject({ status: 0 });
      expect(theirCheck(directory, 'ours.qcow2', 'none')).toMatchObject({ status: 0, lines: [] });
      expect(await ourCheck(path('ours.qcow2'), 'none')).toMatchObject({ status: 0, lines: [] });
      const disk = await judge(damage, unit, before, damaged);
      const names = await snapshotsOf(whole);
      const left = await snapshotsOf(path('ours.qcow2'));
      expect(left).toEqual(damage.snapshotsAfter ?? names);
      for (const name of left.filter((name) => names.includes(name) && damage.snapshotsHurt?.includes(name) !== true)) {
        const frozen = (await contentOf(path('ours.qcow2'), unit, name)) as Content;
        const old = (await contentOf(whole, unit, name)) as Content;
        expect(
          frozen.every((piece, index) => equal(piece, old[index])),
          `snapshot ${name}`,
        ).toBe(true);
      }
      const gone = names.length - left.length;
      const hurt = damage.snapshotsHurt?.length ?? 0;
      const lost = `${gone > 0 ? `; snapshots lost: ${gone}` : ''}${hurt > 0 ? `; snapshots hurt: ${hurt}` : ''}`;
      const verdict = { 0: 'repaired', 1: 'gives up', 2: 'left corrupt', 3: 'leaks left' }[theirs.status] ?? 'crashes';
      rows.push(`| ${damage.name} | ${verdict} | repaired | ${disk}${lost} |`);
    });
  }

  afterAll(() => {
    if (process.env['COWDISK_WRITE_DOCS'] !== '1') return;
    const guide = readFileSync(GUIDE, 'utf8');
    const [begin, end] = ['<!-- damages -->', '<!-- /damages -->'];
    const head =
      '| damage | `qemu-img check -r all` | `cowdisk check -r all` | the disk afterwards |\n|---|---|---|---|';
    const [from, to] = [guide.indexOf(begin) + begin.length, guide.indexOf(end)];
    writeFileSync(GUIDE, `${guide.slice(0, from)}\n\n${head}\n${rows.join('\n')}\n\n${guide.slice(to)}`);
  });

  it('is what the guide says, damage by damage', () => {
    const told = readFileSync(GUIDE, 'utf8')
      .split('\n')
      .filter((line) => line.startsWith('| ') && / \| (whole|as the|what was|sound;)/.test(line));
    expect(told).toEqual(rows);
  });
});
