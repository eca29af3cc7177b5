/** Open, create and amend options of luks, under QEMU's names. Spec: QEMU's `driver=luks` and `qemu-img create -f luks -o help`.
 *  Data only; what the algorithms allow together is the crypto room's business. */
import { bool, choice, defineOptions, int, type OptionsInput, type OptionsOf, size, text } from '../../base/options.ts';

export const openOptions = defineOptions({
  keySecret: text({ cli: 'key-secret', content: true, help: 'ID of the secret that provides the keyslot passphrase' }),
  header: text({ content: true, help: 'File that holds the detached header' }),
});

export type LuksOpenOptions = OptionsOf<typeof openOptions>;

const CIPHER_ALGS = [
  'aes-128',
  'aes-192',
  'aes-256',
  'des',
  '3des',
  'cast5-128',
  'serpent-128',
  'serpent-192',
  'serpent-256',
  'sm4',
  'twofish-128',
  'twofish-192',
  'twofish-256',
] as const;
const HASH_ALGS = ['md5', 'sha1', 'sha224', 'sha256', 'sha384', 'sha512', 'ripemd160', 'sm3'] as const;

export const createOptions = defineOptions({
  size: size({ help: 'Virtual disk size' }),
  keySecret: text({ cli: 'key-secret', help: 'ID of the secret that provides the keyslot passphrase' }),
  cipherAlg: choice(CIPHER_ALGS, { cli: 'cipher-alg', help: 'Name of encryption cipher algorithm' }),
  cipherMode: choice(['ecb', 'cbc', 'xts', 'ctr'], { cli: 'cipher-mode', help: 'Name of encryption cipher mode' }),
  ivgenAlg: choice(['plain', 'plain64', 'essiv'], { cli: 'ivgen-alg', help: 'Name of IV generator algorithm' }),
  ivgenHashAlg: choice(HASH_ALGS, { cli: 'ivgen-hash-alg', help: 'Name of IV generator hash algorithm' }),
  hashAlg: choice(HASH_ALGS, { cli: 'hash-alg', help: 'Name of encryption hash algorithm' }),
  iterTime: int({ cli: 'iter-time', help: 'Time to spend in PBKDF in milliseconds' }),
  detachedHeader: bool({ cli: 'detached-header', default: false, help: 'Create a detached LUKS header' }),
  preallocation: choice(['off', 'metadata', 'falloc', 'full'], {
    default: 'off',
    help: 'Preallocation mode (allowed values: off, falloc, full)',
  }),
});

export type LuksCreateOptions = OptionsOf<typeof createOptions>;

/** Key slots, as `qemu-img amend` changes them. */
export const amendOptions = defineOptions({
  state: text({ help: 'Select new state of affected keyslots (active/inactive)' }),
  newSecret: text({ cli: 'new-secret', help: 'New secret to set in the matching keyslots. Empty string to erase' }),
  oldSecret: text({ cli: 'old-secret', help: 'Select all keyslots that match this password' }),
  keyslot: int({ help: 'Select a single keyslot to modify explicitly' }),
  iterTime: int({ cli: 'iter-time', help: 'Time to spend in PBKDF in milliseconds' }),
});

export type LuksAmendOptions = OptionsInput<typeof amendOptions>;
