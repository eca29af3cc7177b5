/** The errors of this room, made in one place. */
import { BlockError, type ErrorCode, type ErrorDetails } from '../base/errors.ts';

/** @param subject what messages begin with: `luks "a.img"`, `qcow2 "a.qcow2": LUKS header`
 *  @param finding becomes the reason `luks.<finding>` */
export function fault(
  subject: string,
  finding: string,
  what: string,
  details: ErrorDetails = {},
  code: ErrorCode = 'CORRUPT',
): BlockError {
  return new BlockError(code, `${subject}: ${what}`, { reason: `luks.${finding}`, details });
}
