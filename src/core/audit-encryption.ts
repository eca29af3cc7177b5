/** What audits say of encryption: whether a key can be guessed, and what unlocking costs. Knows no header; formats give it the facts. */
import { type AuditContext, type AuditPlace, type AuditRule, shown } from './audit.ts';
import { auditRule } from './audit-rules.ts';

export const ENCRYPTION = {
  weakIterations: auditRule(
    'encryption.weak-iterations',
    'medium',
    'A key slot asks for fewer than 100,000 iterations: passphrases can be tried fast by whoever has the file.',
    'make the slot anew with more time (`cowdisk amend`, option `iter-time`), and convert the image where others have had the file',
  ),
  slowIterations: auditRule(
    'encryption.slow-iterations',
    'medium',
    'A key slot asks for more than 100 million iterations: unlocking takes minutes of one core, for a wrong passphrase too.',
    'do not try passphrases on it without a limit on time',
  ),
  weakAlgorithm: auditRule(
    'encryption.weak-algorithm',
    'medium',
    'The cipher, its mode or the hash lets whoever has the file learn or change content without the key: ECB, CBC with a predictable IV, MD5, SHA-1, or the AES method of old qcow2 images.',
    'convert the image to one with `aes-256` in mode `xts-plain64` and `sha256`',
  ),
  noKey: auditRule(
    'encryption.no-key',
    'low',
    'No key slot is in use: the disk can be read by nobody but who has kept the master key.',
    'the content is lost; delete the image',
  ),
} as const;

export const ENCRYPTION_RULES: readonly AuditRule[] = Object.values(ENCRYPTION);

/** What a header says of its encryption. */
export interface EncryptionFacts {
  readonly cipher: string;
  readonly mode: string;
  readonly ivGenerator: string;
  readonly hash: string;
  readonly slots: readonly { readonly active: boolean; readonly iterations: number }[];
}

const WEAK_BELOW = 100_000;
const SLOW_ABOVE = 100_000_000;

/** @param place where the header is */
export function auditEncryption(context: AuditContext, facts: EncryptionFacts, place: AuditPlace): void {
  const { book } = context;
  const { cipher, mode, ivGenerator, hash, slots } = facts;
  const isPredictable = mode === 'ecb' || (mode === 'cbc' && ivGenerator !== 'essiv');
  if (isPredictable || hash === 'md5' || hash === 'sha1') {
    const value = `${cipher} ${mode}-${ivGenerator} ${hash}`;
    book.add(ENCRYPTION.weakAlgorithm, { ...place, value }, `encrypted with ${shown(value)}`);
  }
  if (slots.every(({ active }) => !active)) book.add(ENCRYPTION.noKey, place, 'no key slot is in use');
  slots.forEach(({ active, iterations }, slot) => {
    if (!active) return;
    const at = { ...place, field: `slot ${slot}`, value: iterations };
    if (iterations < WEAK_BELOW) {
      book.add(ENCRYPTION.weakIterations, at, `key slot ${slot} asks for ${iterations} iterations`);
    }
    if (iterations > SLOW_ABOVE) {
      book.add(ENCRYPTION.slowIterations, at, `key slot ${slot} asks for ${iterations} iterations`);
    }
  });
}
