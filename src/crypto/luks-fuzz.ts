/** Where the numbers of a LUKS header are, for the fuzzer: data, of which the formats that have such a header make their fields. Its own
 *  offsets, so that a mistake of the parser's does not hide behind itself. Spec: LUKS on-disk format 1.2.3, section 4. */

export interface LuksField {
  readonly kind: string;
  /** From the beginning of the header, bytes. */
  readonly at: number;
  readonly bytes: 1 | 2 | 4;
  readonly role: 'number' | 'text' | 'work';
}

const SLOTS = 8;
const SLOT_BYTES = 48;
const FIRST_SLOT = 208;
/** Of a name, a salt or key material, so many bytes. */
const SAMPLE = 12;

function sample(kind: string, at: number): LuksField[] {
  return Array.from({ length: SAMPLE }, (_, i) => ({ kind, at: at + i, bytes: 1, role: 'text' }));
}

function slot(number: number): LuksField[] {
  const at = FIRST_SLOT + number * SLOT_BYTES;
  return [
    { kind: 'luks.slot-state', at, bytes: 4, role: 'number' },
    { kind: 'luks.slot-iterations', at: at + 4, bytes: 4, role: 'work' },
    ...sample('luks.slot-salt', at + 8),
    { kind: 'luks.slot-material', at: at + 40, bytes: 4, role: 'number' },
    { kind: 'luks.slot-stripes', at: at + 44, bytes: 4, role: 'number' },
  ];
}

/** All of them, in the order of the header. */
export function luksFields(): readonly LuksField[] {
  return [
    { kind: 'luks.version', at: 6, bytes: 2, role: 'number' },
    ...sample('luks.cipher-name', 8),
    ...sample('luks.cipher-mode', 40),
    ...sample('luks.hash', 72),
    { kind: 'luks.payload', at: 104, bytes: 4, role: 'number' },
    { kind: 'luks.key-bytes', at: 108, bytes: 4, role: 'number' },
    ...sample('luks.digest', 112),
    ...sample('luks.digest-salt', 132),
    { kind: 'luks.digest-iterations', at: 164, bytes: 4, role: 'work' },
    ...sample('luks.uuid', 168),
    ...Array.from({ length: SLOTS }, (_, number) => slot(number)).flat(),
  ];
}
