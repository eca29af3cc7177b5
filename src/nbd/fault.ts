/** What is wrong with what the other side sends. */
import { BlockError } from '../base/errors.ts';

/** @param finding the reason is `nbd.finding` */
export function nbdFault(
  finding: string,
  message: string,
  details: Readonly<Record<string, unknown>> = {},
): BlockError {
  return new BlockError('PROTOCOL', `nbd: ${message}`, { reason: `nbd.${finding}`, details });
}
