/** Names in headers and options, and which of them are refused where. */
import { describe, expect, it } from 'vitest';
import {
  chooseAlgorithms,
  cipherAlgName,
  cipherModeField,
  masterKeyBytes,
  parseAlgorithms,
  requireUsable,
} from '../../src/crypto/algorithms.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { SUBJECT } from './support.ts';

const error = (code: string, reason: string, details = {}) =>
  expect.objectContaining({ code, reason, details: expect.objectContaining(details) });

describe('parseAlgorithms', () => {
  it.each([
    ['aes', 'xts-plain64', 64, { cipherKeyBytes: 32, mode: 'xts', ivGenerator: 'plain64', ivHash: undefined }],
    ['aes', 'xts-plain', 32, { cipherKeyBytes: 16, mode: 'xts', ivGenerator: 'plain', ivHash: undefined }],
    ['aes', 'cbc-essiv:sha256', 16, { cipherKeyBytes: 16, mode: 'cbc', ivGenerator: 'essiv', ivHash: 'sha256' }],
    ['aes', 'cbc-plain64:sha1', 24, { cipherKeyBytes: 24, mode: 'cbc', ivGenerator: 'plain64', ivHash: 'sha1' }],
    ['serpent', 'ctr-plain64', 32, { cipher: 'serpent', cipherKeyBytes: 32, mode: 'ctr' }],
    ['cast5', 'ecb-plain64', 16, { cipher: 'cast5', cipherKeyBytes: 16, mode: 'ecb' }],
    ['sm4', 'xts-plain64', 32, { cipher: 'sm4', cipherKeyBytes: 16, mode: 'xts' }],
  ])('reads %s %s with a key of %i bytes', (cipher, mode, keyBytes, expected) => {
    const algorithms = parseAlgorithms(cipher, mode, 'sha512', keyBytes, SUBJECT);
    expect(algorithms).toMatchObject({ cipher, hash: 'sha512', ...expected });
    expect(cipherModeField(algorithms)).toBe(mode);
    expect(masterKeyBytes(algorithms)).toBe(keyBytes);
  });

  it.each([
    ['aes', 'xts', 'sha256', 64, 'CORRUPT', 'luks.mode-field'],
    ['aes', '', 'sha256', 64, 'CORRUPT', 'luks.mode-field'],
    ['aes', 'lrw-plain64', 'sha256', 64, 'UNSUPPORTED', 'luks.mode'],
    ['aes', '-plain64', 'sha256', 64, 'UNSUPPORTED', 'luks.mode'],
    ['aes', 'xts-', 'sha256', 64, 'UNSUPPORTED', 'luks.iv-generator'],
    ['aes', 'xts-benbi', 'sha256', 64, 'UNSUPPORTED', 'luks.iv-generator'],
    ['aes', 'xts-plain64:', 'sha256', 64, 'UNSUPPORTED', 'luks.hash'],
    ['aes', 'xts-plain64:whirlpool', 'sha256', 64, 'UNSUPPORTED', 'luks.hash'],
    ['aes', 'xts-plain64', 'whirlpool', 64, 'UNSUPPORTED', 'luks.hash'],
    ['aes', 'xts-plain64', '', 64, 'UNSUPPORTED', 'luks.hash'],
    ['aes', 'xts-plain64', 'constructor', 64, 'UNSUPPORTED', 'luks.hash'],
    ['aes', 'xts-plain64', 'sha256', 65, 'UNSUPPORTED', 'luks.cipher'],
    ['aes', 'xts-plain64', 'sha256', 16, 'UNSUPPORTED', 'luks.cipher'],
    ['aes', 'cbc-plain64', 'sha256', 64, 'UNSUPPORTED', 'luks.cipher'],
    ['aes', 'cbc-plain64', 'sha256', 0, 'UNSUPPORTED', 'luks.cipher'],
    ['camellia', 'cbc-plain64', 'sha256', 16, 'UNSUPPORTED', 'luks.cipher'],
    ['toString', 'cbc-plain64', 'sha256', 16, 'UNSUPPORTED', 'luks.cipher'],
    ['cast5', 'cbc-plain64', 'sha256', 32, 'UNSUPPORTED', 'luks.cipher'],
    ['aes', 'cbc-essiv', 'sha256', 16, 'CORRUPT', 'luks.iv-hash'],
    ['aes', 'cbc-essiv:sha512', 'sha256', 16, 'UNSUPPORTED', 'luks.essiv'],
    ['cast5', 'cbc-essiv:sha256', 'sha256', 16, 'UNSUPPORTED', 'luks.essiv'],
  ])('refuses %s %s, %s, with a key of %i bytes', (cipher, mode, hash, keyBytes, code, reason) => {
    expect(() => parseAlgorithms(cipher, mode, hash, keyBytes, SUBJECT)).toThrow(error(code, reason));
  });
});

describe('chooseAlgorithms', () => {
  it('takes what QEMU takes where nothing is chosen', () => {
    const algorithms = chooseAlgorithms({}, SUBJECT);
    expect(cipherAlgName(algorithms)).toBe('aes-256');
    expect(cipherModeField(algorithms)).toBe('xts-plain64');
    expect(algorithms.hash).toBe('sha256');
  });

  it('gives essiv its usual hash, and others the one that was named', () => {
    expect(cipherModeField(chooseAlgorithms({ ivgenAlg: 'essiv' }, SUBJECT))).toBe('xts-essiv:sha256');
    expect(cipherModeField(chooseAlgorithms({ ivgenHashAlg: 'sha1' }, SUBJECT))).toBe('xts-plain64:sha1');
  });

  it.each(['aes-128', 'aes-192', 'cast5-128', 'serpent-256', 'twofish-192', 'sm4'])('knows %s', (cipherAlg) => {
    expect(cipherAlgName(chooseAlgorithms({ cipherAlg, cipherMode: 'cbc' }, SUBJECT))).toBe(cipherAlg);
  });

  it.each([
    [{ cipherAlg: 'des' }, 'luks.cipher'],
    [{ cipherAlg: '3des' }, 'luks.cipher'],
    [{ cipherAlg: 'aes' }, 'luks.cipher'],
    [{ cipherAlg: 'aes-512' }, 'luks.cipher'],
    [{ cipherAlg: '' }, 'luks.cipher'],
    [{ cipherMode: 'gcm' }, 'luks.mode'],
    [{ ivgenAlg: 'null' }, 'luks.iv-generator'],
    [{ hashAlg: 'sha3' }, 'luks.hash'],
    [{ ivgenHashAlg: 'sha3' }, 'luks.hash'],
    [{ ivgenAlg: 'essiv', ivgenHashAlg: 'sha1' }, 'luks.essiv'],
  ])('refuses %j', (options, reason) => {
    expect(() => chooseAlgorithms(options, SUBJECT)).toThrow(error('UNSUPPORTED', reason));
  });
});

describe('requireUsable', () => {
  it.each(['serpent-128', 'twofish-256', 'cast5-128'])('refuses %s, for which there is no library', (cipherAlg) => {
    const algorithms = chooseAlgorithms({ cipherAlg, cipherMode: 'cbc' }, SUBJECT);
    expect(() => requireUsable(algorithms, nodeCrypto, SUBJECT)).toThrow(
      error('UNSUPPORTED', 'luks.cipher', { cipher: cipherAlg }),
    );
  });

  it('refuses hashes that the runtime lacks, that of essiv too, but not one that means nothing', () => {
    const poor = { ...nodeCrypto, hasHash: (name: string) => name === 'sha256' };
    const of = (options: object) => chooseAlgorithms(options, SUBJECT);
    expect(() => requireUsable(of({ hashAlg: 'ripemd160' }), poor, SUBJECT)).toThrow(
      error('UNSUPPORTED', 'luks.hash', { hash: 'ripemd160' }),
    );
    expect(() => requireUsable(of({ ivgenAlg: 'essiv', ivgenHashAlg: 'md5' }), poor, SUBJECT)).toThrow(
      error('UNSUPPORTED', 'luks.hash', { hash: 'md5' }),
    );
    requireUsable(of({ ivgenHashAlg: 'md5' }), poor, SUBJECT);
  });
});
