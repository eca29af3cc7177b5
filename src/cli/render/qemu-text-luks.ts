/** QEMU's sentences for the findings about secrets, ciphers and LUKS volumes. Data only. */
import type { TextRule } from './qemu-text.ts';

export const LUKS_TEXTS: Readonly<Record<string, TextRule>> = {
  'luks.key-secret': ({ option }) => `Parameter '${option ?? 'key-secret'}' is required for cipher`,
  'secret.missing': ({ id }) => `No secret with id '${id}'`,

  // the header
  'luks.magic': 'Volume is not in LUKS format',
  'luks.version': ({ version }) => `LUKS version ${version} is not supported`,
  'luks.string': ({ field }) => `LUKS header ${field} is not NUL terminated`,
  'luks.payload': 'LUKS payload is overlapping with the header',
  'luks.digest-iterations': 'LUKS key iteration count is zero',
  'luks.slot-stripes': ({ slot, value, bound }) =>
    `Keyslot ${slot} is corrupted (stripes ${Number(value) | 0} != ${bound})`,
  'luks.slot-state': ({ slot }) => `Keyslot ${slot} state (active/disable) is corrupted`,
  'luks.slot-iterations': ({ slot }) => `Keyslot ${slot} iteration count is zero`,
  'luks.slot-header': ({ slot }) => `Keyslot ${slot} is overlapping with the LUKS header`,
  'luks.slot-payload': ({ slot }) => `Keyslot ${slot} is overlapping with the encrypted payload`,
  'luks.slot-overlap': ({ slot, other }) => `Keyslots ${slot} and ${other} are overlapping in the header`,
  'luks.mode-field': ({ mode }) => `Unexpected cipher mode string format '${mode}'`,
  'luks.mode': ({ mode }) => `Cipher mode '${mode}' not supported`,
  'luks.hash': ({ hash }) => `Hash algorithm '${hash}' not supported`,
  'luks.iv-generator': ({ generator }) => `IV generator '${generator}' not supported`,
  'luks.iv-hash': 'Missing IV generator hash specification',
  'luks.essiv': ({ cipher, keyBytes }) =>
    cipher === 'cast5' || cipher === 'sm4'
      ? `Cipher ${cipher === 'sm4' ? cipher : 'cast5-128'} not supported with essiv`
      : `No ${CIPHER_NAMES[String(cipher)] ?? cipher} cipher with key size ${keyBytes} available`,
  'luks.cipher': ({ cipher, keyBytes }) =>
    typeof keyBytes !== 'number'
      ? undefined
      : `Algorithm '${cipher}'${Number.isNaN(keyBytes) ? '' : ` with key size ${keyBytes} bytes`} not supported`,

  'luks.iter-time': ({ iterations }) =>
    `PBKDF iterations ${iterations} too large to scale: Numerical result out of range`,
  'luks.preallocation': ({ mode }) => `Unsupported preallocation mode: ${mode}`,

  // unlocking and key slots
  'luks.password': 'Invalid password, cannot unlock any keyslot',
  'luks.amend-state': "Parameter 'state' is missing",
  'luks.amend-state-value': ({ value }) => `Parameter 'state' does not accept value '${value}'`,
  'luks.amend-new-missing': "'new-secret' is required to activate a keyslot",
  'luks.amend-old-given': "'old-secret' must not be given when activating keyslots",
  'luks.amend-new-given': "'new-secret' must not be given when erasing keyslots",
  'luks.amend-iter-given': "'iter-time' must not be given when erasing keyslots",
  'luks.slot': ({ slot, bound }) => `Invalid keyslot ${slot} specified, must be between 0 and ${bound}`,
  'luks.slots-full': "Can't add a keyslot - all keyslots are in use",
  'luks.slot-active': ({ slot }) => `Refusing to overwrite active keyslot ${slot} - please erase it first`,
  'luks.old-password': ({ slot }) => `Given keyslot ${slot} doesn't contain the given old password for erase operation`,
  'luks.slot-inactive': ({ slot }) => `Given keyslot ${slot} is already erased (inactive) `,
  'luks.last-slot': ({ slot }) =>
    `Attempt to erase the only active keyslot ${slot} which will erase all the data in the image irreversibly - refusing operation`,
  'luks.no-match': 'No keyslots match given (old) password for erase operation',
  'luks.all-slots':
    'All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation',
  'luks.erase-what':
    'To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given',
};

const CIPHER_NAMES: Readonly<Record<string, string>> = { aes: 'AES', serpent: 'Serpent', twofish: 'Twofish' };
