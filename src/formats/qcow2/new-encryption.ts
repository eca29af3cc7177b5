/** Encryption of an image that is being made: what its options mean, how much room it takes, and the writing of its LUKS header.
 *  Spec: `qemu-img create -f qcow2 -o help` (encrypt.*); qcow2, "Full disk encryption header pointer".
 *  Invariants: what is wrong with the options is said before anything is written; the LUKS header is durable before the image's own header
 *  points to it; neither passphrase nor key outlives the call. */
import { BlockError, type ErrorCode, type ErrorDetails } from '../../base/errors.ts';
import { alignUp } from '../../bytes/align.ts';
import type { CreateContext } from '../../core/format.ts';
import type { AlgorithmOptions } from '../../crypto/algorithms.ts';
import { createLuks, planLuks } from '../../crypto/create-luks.ts';
import { cryptoWith } from '../../crypto/runtime.ts';
import { HeaderWindow, needsKey, subjectOf } from './encryption.ts';
import type { CryptoPointer } from './extensions.ts';
import type { Qcow2CreateOptions } from './options.ts';

export interface NewEncryption {
  readonly method: 'aes' | 'luks';
  /** Bytes of LUKS header and key slots; 0 with `aes`. */
  readonly headerBytes: number;
}

const METHODS: readonly string[] = ['aes', 'luks'] satisfies NewEncryption['method'][];

/** Values of `cipher-alg` and the like that mean something to QEMU, whether they can be had or not. */
const CIPHER_ALGS = /^(aes|serpent|twofish)-(128|192|256)$|^(cast5-128|des|3des|sm4)$/;
const HASH_ALGS = /^(md5|sha1|sha224|sha256|sha384|sha512|ripemd160|sm3)$/;
const CHOICES: Readonly<Record<string, RegExp>> = {
  'cipher-alg': CIPHER_ALGS,
  'cipher-mode': /^(ecb|cbc|xts|ctr)$/,
  'ivgen-alg': /^(plain|plain64|essiv)$/,
  'ivgen-hash-alg': HASH_ALGS,
  'hash-alg': HASH_ALGS,
};

/** What the options ask for; no secret is asked for.
 *  @returns `undefined` when nothing is to be encrypted
 *  @throws {@link BlockError} OPTION `qcow2.encrypt-twice`, `qcow2.encrypt-format-missing`, `qcow2.encrypt-format`, `qcow2.encrypt-choice`,
 *  `qcow2.encrypt-surplus`; UNSUPPORTED as `planLuks`. */
export function planEncryption(options: Qcow2CreateOptions, name: string): NewEncryption | undefined {
  const { encryption, encryptFormat, encryptKeySecret } = options;
  const algorithms = givenAlgorithms(options);
  if (encryption === true && encryptFormat !== undefined) {
    throw fault(name, 'encrypt-twice', 'encryption and encrypt.format are two ways to say one thing', {});
  }
  const method = encryption === true ? 'aes' : encryptFormat;
  if (method === undefined) {
    if (encryptKeySecret === undefined && algorithms.length === 0) return undefined;
    throw fault(name, 'encrypt-format-missing', 'encrypt.format is missing: aes or luks', {});
  }
  if (!METHODS.includes(method)) {
    throw fault(name, 'encrypt-format', `encrypt.format '${method}' is neither aes nor luks`, { value: method });
  }
  if (method === 'aes') {
    const [surplus] = algorithms;
    if (surplus === undefined) return { method: 'aes', headerBytes: 0 };
    throw fault(name, 'encrypt-surplus', `encrypt.${surplus[0]} has no meaning with encrypt.format=aes`, {
      option: surplus[0],
    });
  }
  for (const [option, value] of algorithms) requireChoice(option, value, name);
  return { method: 'luks', headerBytes: planLuks(algorithmsOf(options), subjectOf(name)).headerBytes };
}

function givenAlgorithms(options: Qcow2CreateOptions): [option: string, value: string | number][] {
  const all: readonly (readonly [string, string | number | undefined])[] = [
    ['cipher-alg', options.encryptCipherAlg],
    ['cipher-mode', options.encryptCipherMode],
    ['ivgen-alg', options.encryptIvgenAlg],
    ['ivgen-hash-alg', options.encryptIvgenHashAlg],
    ['hash-alg', options.encryptHashAlg],
    ['iter-time', options.encryptIterTime],
  ];
  return all.filter((pair): pair is [string, string | number] => pair[1] !== undefined);
}

function requireChoice(option: string, value: string | number, name: string): void {
  const choice = CHOICES[option];
  if (choice === undefined || choice.test(String(value))) return;
  throw fault(name, 'encrypt-choice', `encrypt.${option} '${value}' is not known`, { option, value });
}

function algorithmsOf(options: Qcow2CreateOptions): AlgorithmOptions {
  return {
    cipherAlg: options.encryptCipherAlg,
    cipherMode: options.encryptCipherMode,
    ivgenAlg: options.encryptIvgenAlg,
    ivgenHashAlg: options.encryptIvgenHashAlg,
    hashAlg: options.encryptHashAlg,
  };
}

/** The passphrase of a new image, which the caller wipes.
 *  @throws {@link BlockError} ENCRYPTED `qcow2.encrypted`; NOT_FOUND `secret.missing`. */
export function newPassphrase(context: CreateContext, { method }: NewEncryption, id: string | undefined): Uint8Array {
  if (id === undefined) throw needsKey(method, context.name);
  return context.secret(id);
}

/** Writes the LUKS header into its place. Durable when it ends.
 *  @throws {@link BlockError} as `createLuks`. */
export async function writeLuksHeader(
  { file, name, chance }: CreateContext,
  { offset, length }: CryptoPointer,
  clusterSize: number,
  passphrase: Uint8Array,
  options: Qcow2CreateOptions,
): Promise<void> {
  // a device has an old content, and slots that are not used must not look like something
  await file.writeZeroes(offset, alignUp(length, clusterSize));
  const { key } = await createLuks(new HeaderWindow(file, offset, length), cryptoWith(chance), {
    ...algorithmsOf(options),
    iterTime: options.encryptIterTime,
    subject: subjectOf(name),
    passphrase,
  });
  key.wipe();
}

function fault(
  name: string,
  finding: string,
  what: string,
  details: ErrorDetails,
  code: ErrorCode = 'OPTION',
): BlockError {
  return new BlockError(code, `qcow2 "${name}": ${what}`, { reason: `qcow2.${finding}`, details });
}
