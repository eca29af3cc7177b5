/** What the fuzzer is told of luks: which volumes there are, and where the numbers of their headers are. */
import { below, pick } from '../../base/random.ts';
import { KiB } from '../../base/sizes.ts';
import type { Anatomy, FuzzFormat, FuzzRecipe } from '../../core/fuzz.ts';
import { FieldCollector } from '../../core/fuzz-fields.ts';
import { luksFields } from '../../crypto/luks-fuzz.ts';
import { luks } from './driver.ts';

const SECTOR = 512;
const PAYLOAD_AT = 104;
/** The place of a slot's key material, from the beginning of the slot. */
const MATERIAL_AT = 40;
const FIRST_SLOT = 208;
const SLOT_BYTES = 48;
const SLOTS = 8;
/** Of the key material, so many bytes. */
const SAMPLE = 24;

export const luksFuzz: FuzzFormat = { driver: luks, recipe, anatomy };

function recipe(random: () => number): FuzzRecipe {
  const mode = pick(random, [
    { cipherMode: 'cbc', ivgenAlg: 'plain' },
    { cipherMode: 'cbc', ivgenAlg: 'plain64' },
    { cipherMode: 'cbc', ivgenAlg: 'essiv', ivgenHashAlg: 'sha256' },
    { cipherMode: 'ecb' },
    { cipherMode: 'xts', ivgenAlg: 'plain64' },
  ]);
  const hashAlg = pick(random, ['sha1', 'sha256', 'sha512']);
  return {
    size: SECTOR * (1 + below(random, (512 * KiB) / SECTOR)),
    features: [`cipher_mode ${mode.cipherMode}`, `hash_alg ${hashAlg}`],
    create: { keySecret: 'secret', cipherAlg: 'aes-128', ...mode, hashAlg, iterTime: 0 },
    open: { 'key-secret': 'secret' },
    compressed: false,
    snapshots: 0,
    bitmaps: 0,
  };
}

function anatomy(image: Uint8Array): Anatomy {
  const fields = new FieldCollector(image);
  for (const { kind, at, bytes, role } of luksFields()) fields.add(kind, at, bytes, role);
  const payload = fields.u32(PAYLOAD_AT) * SECTOR;
  fields.landmark(payload);
  for (let slot = 0; slot < SLOTS; slot++) {
    const material = fields.u32(FIRST_SLOT + slot * SLOT_BYTES + MATERIAL_AT) * SECTOR;
    fields.landmark(material);
    if (slot === 0) fields.text('luks.material', material, SAMPLE);
  }
  fields.text('luks.disk', payload, SAMPLE);
  return fields.result(SECTOR);
}
