/** One key slot: the master key, split, and encrypted with a key derived from a passphrase. Spec: LUKS on-disk format 1.2.3, section 4.
 *  Invariant: buffers that held a key, or what a key can be made of, are wiped before they are dropped. */
import { mergeKey, splitKey } from './af-split.ts';
import { masterKeyBytes } from './algorithms.ts';
import { roundsOf } from './key-derivation.ts';
import { LUKS_DIGEST_BYTES, LUKS_STRIPES, type LuksHeader, type LuksKeySlot, materialBytes } from './luks-header.ts';
import type { CryptoProvider } from './provider.ts';
import { createSectorCipher } from './sector-cipher.ts';

/** Rounds of PBKDF2 that trying a slot costs. */
export function roundsOfSlot(header: LuksHeader, slot: LuksKeySlot): number {
  const { algorithms } = header;
  return (
    roundsOf(algorithms.hash, slot.iterations, masterKeyBytes(algorithms)) +
    roundsOf(algorithms.hash, header.digestIterations, LUKS_DIGEST_BYTES)
  );
}

/** Tries a passphrase on a slot.
 *  @param material of the slot as it is stored; it is decrypted in place, and wiped
 *  @returns the master key, or `undefined` when it is not this passphrase's. */
export async function openSlot(
  header: LuksHeader,
  slot: LuksKeySlot,
  material: Uint8Array,
  passphrase: Uint8Array,
  provider: CryptoProvider,
  subject: string,
): Promise<Uint8Array | undefined> {
  const { algorithms } = header;
  const length = masterKeyBytes(algorithms);
  const slotKey = await provider.pbkdf2(algorithms.hash, passphrase, slot.salt, slot.iterations, length);
  let key: Uint8Array;
  try {
    const cipher = createSectorCipher(algorithms, slotKey, provider, subject);
    cipher.decrypt(material, 0);
    cipher.wipe();
    key = mergeKey(material, length, LUKS_STRIPES, algorithms.hash, provider);
  } finally {
    slotKey.fill(0);
    material.fill(0);
  }
  const digest = await digestOf(key, header, provider);
  if (sameBytes(digest, header.digest)) return key;
  key.fill(0);
  return undefined;
}

/** @returns the material to store for a slot that a passphrase opens. */
export async function sealSlot(
  header: LuksHeader,
  slot: LuksKeySlot,
  key: Uint8Array,
  passphrase: Uint8Array,
  provider: CryptoProvider,
  subject: string,
): Promise<Uint8Array> {
  const { algorithms } = header;
  const slotKey = await provider.pbkdf2(algorithms.hash, passphrase, slot.salt, slot.iterations, key.length);
  const material = new Uint8Array(materialBytes(key.length));
  try {
    const split = splitKey(key, LUKS_STRIPES, algorithms.hash, provider);
    material.set(split);
    split.fill(0);
    const cipher = createSectorCipher(algorithms, slotKey, provider, subject);
    cipher.encrypt(material, material, 0);
    cipher.wipe();
  } finally {
    slotKey.fill(0);
  }
  return material;
}

/** By which a master key is known to be the right one. */
export function digestOf(
  key: Uint8Array,
  header: Pick<LuksHeader, 'algorithms' | 'digestSalt' | 'digestIterations'>,
  provider: CryptoProvider,
): Promise<Uint8Array> {
  const { algorithms, digestSalt, digestIterations } = header;
  return provider.pbkdf2(algorithms.hash, key, digestSalt, digestIterations, LUKS_DIGEST_BYTES);
}

/** In a time that does not tell where they differ. */
function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  let difference = 0;
  for (let i = 0; i < a.length; i++) difference |= (a[i] as number) ^ (b[i] as number);
  return difference === 0;
}
