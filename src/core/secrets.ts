/** Secrets as callers give them, by id. Owns no copy of its own: each asking makes one, and whoever asked wipes it.
 *  Invariant: the bytes of a secret never appear in a message. */
import { BlockError } from '../base/errors.ts';
import type { Secrets } from './format.ts';

/** Passwords and keys by id; a text means its UTF-8 bytes. */
export type SecretsInput = Readonly<Record<string, string | Uint8Array>>;

export function secretsOf(given: SecretsInput | undefined): Secrets {
  return (id) => {
    const secret = given !== undefined && Object.hasOwn(given, id) ? given[id] : undefined;
    if (secret === undefined) {
      throw new BlockError('NOT_FOUND', `no secret has the id "${id}"; give it among the secrets`, {
        reason: 'secret.missing',
        details: { id },
      });
    }
    // not slice(): that of a Buffer shares its memory
    return typeof secret === 'string' ? new TextEncoder().encode(secret) : new Uint8Array(secret);
  };
}
