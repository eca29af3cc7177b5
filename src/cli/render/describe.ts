/** An error in words: the house's own sentence for `cowdisk`, QEMU's for `qemu-img`. */
import type { BlockError } from '../../base/errors.ts';
import type { Personality } from '../console.ts';
import { qemuText } from './qemu-text.ts';

export interface Description {
  readonly text: string;
  /** Further lines, printed as they are. */
  readonly hint?: string | undefined;
}

export function describeError(error: BlockError, personality: Personality): Description {
  if (personality.qemu) return qemuText(error);
  const isLost = error.reason === 'image.backing' && error.code === 'NOT_FOUND';
  return isLost ? { text: error.message, hint: 'Say where it is with --with-backing FILE\n' } : { text: error.message };
}
