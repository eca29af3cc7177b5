/** The errors of this room, made in one place; those of headers and keys are the crypto room's. */
import { BlockError, type ErrorCode, type ErrorDetails } from '../../base/errors.ts';

/** @param finding becomes the reason `luks.<finding>` */
export function luksFault(
  code: ErrorCode,
  name: string,
  finding: string,
  what: string,
  details: ErrorDetails = {},
): BlockError {
  return new BlockError(code, `${subjectOf(name)}: ${what}`, { reason: `luks.${finding}`, details });
}

/** What messages about an image begin with. */
export function subjectOf(name: string): string {
  return `luks "${name}"`;
}

/** The id of the secret that opens the image. @throws {@link BlockError} ENCRYPTED `luks.key-secret`. */
export function requireKeySecret(id: string | undefined, name: string): string {
  if (id !== undefined) return id;
  throw luksFault(
    'ENCRYPTED',
    name,
    'key-secret',
    'needs a password: name the secret that has it (option key-secret)',
    {
      option: 'key-secret',
    },
  );
}
