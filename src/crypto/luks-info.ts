/** What can be told of a LUKS volume without its key, under QEMU's names. */
import { cipherAlgName } from './algorithms.ts';
import { LUKS_STRIPES, type LuksHeader } from './luks-header.ts';

export interface LuksInfo {
  readonly 'cipher-alg': string;
  readonly 'cipher-mode': string;
  readonly 'ivgen-alg': string;
  readonly 'ivgen-hash-alg'?: string;
  readonly 'hash-alg': string;
  readonly uuid: string;
  readonly 'payload-offset': number;
  readonly 'master-key-iters': number;
  readonly slots: readonly {
    readonly active: boolean;
    readonly 'key-offset': number;
    readonly iters?: number;
    readonly stripes?: number;
  }[];
}

export function luksInfo(header: LuksHeader): LuksInfo {
  const { algorithms, slots, uuid, payloadOffset, digestIterations } = header;
  const { mode, ivGenerator, ivHash, hash } = algorithms;
  return {
    'cipher-alg': cipherAlgName(algorithms),
    'cipher-mode': mode,
    'ivgen-alg': ivGenerator,
    ...(ivGenerator === 'essiv' && ivHash !== undefined ? { 'ivgen-hash-alg': ivHash } : {}),
    'hash-alg': hash,
    uuid,
    'payload-offset': payloadOffset,
    'master-key-iters': digestIterations,
    slots: slots.map(({ active, materialOffset, iterations }) => ({
      active,
      'key-offset': materialOffset,
      ...(active ? { iters: iterations, stripes: LUKS_STRIPES } : {}),
    })),
  };
}
