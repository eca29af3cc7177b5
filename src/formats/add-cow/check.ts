/** Check and repair: the bitmap against the size of the disk and the length of the file. Spec: add-cow, "Bitmap length", "File length".
 *  A bitmap cannot contradict itself: whatever it says is a disk. What can be wrong is what it says about clusters that the disk does not have.
 *  Invariants: while a check runs no request does; after a repair nothing that was read before is used; guest data is never read. */
import type { CheckFacet, CheckFinding, CheckOptions, CheckResult } from '../../core/format.ts';
import { countBits, writeBits } from './bitmap-file.ts';
import { fileLength, presenceGeometry } from './layout.ts';
import type { AddCowState } from './state.ts';

export class AddCowChecker implements CheckFacet {
  readonly #state: AddCowState;

  constructor(state: AddCowState) {
    this.#state = state;
  }

  check(options: CheckOptions): Promise<CheckResult> {
    const run = (): Promise<CheckResult> => checkState(this.#state, options);
    const { engine } = this.#state;
    return engine === undefined ? run() : engine.exclusive(run);
  }
}

async function checkState(state: AddCowState, options: CheckOptions): Promise<CheckResult> {
  const { header, file, map, virtualSize } = state;
  const { bitmapOffset, bits } = presenceGeometry(header, virtualSize);
  const whole = map === undefined;
  const length = fileLength(header, virtualSize);
  const common = {
    checkErrors: 0,
    corruptions: 0,
    corruptionsFixed: 0,
    imageEndOffset: whole ? bitmapOffset : length,
    totalClusters: bits,
    fragmentedClusters: 0,
    compressedClusters: 0,
  };
  // Then the bitmap counts for nothing.
  if (whole) return { ...common, leaks: 0, leaksFixed: 0, allocatedClusters: bits };
  if (!state.readOnly) await map.flush();
  const allocatedClusters = await countBits(file, bitmapOffset, 0, bits, options);
  const leaks = await countBits(file, bitmapOffset, bits, Math.max(bits, (file.size - bitmapOffset) * 8), options);
  if (leaks > 0) options.onFinding?.(bitsPastEnd(leaks, virtualSize));
  if (file.size < length) options.onFinding?.(shortFile(file.size, length));
  const { fix = 'none' } = options;
  const repaired = fix !== 'none' && (await repair(state, leaks, length, fix === 'all'));
  const leaksFixed = repaired ? leaks : 0;
  return { ...common, leaks: leaks - leaksFixed, leaksFixed, allocatedClusters };
}

/** @returns true when the bits past the end are gone. */
async function repair(state: AddCowState, leaks: number, length: number, extend: boolean): Promise<boolean> {
  const { file, header, virtualSize } = state;
  const { bitmapOffset, bits } = presenceGeometry(header, virtualSize);
  const short = extend && file.size < length && file.supports.truncate;
  if (leaks === 0 && !short) return false;
  if (leaks > 0) await writeBits(file, bitmapOffset, bits, (file.size - bitmapOffset) * 8, false);
  if (short) await file.truncate(length);
  await file.flush();
  await state.reshape(virtualSize);
  return leaks > 0;
}

function bitsPastEnd(count: number, virtualSize: number): CheckFinding {
  return {
    kind: 'leak',
    reason: 'add-cow.bits-past-end',
    message: `Leaked bits: ${count} clusters past the end of the disk, ${virtualSize} bytes, are marked as allocated`,
    details: { count, virtualSize },
  };
}

function shortFile(size: number, length: number): CheckFinding {
  return {
    kind: 'note',
    reason: 'add-cow.short-file',
    message: `The file has ${size} bytes and ends before its bitmap does, at ${length}; what is missing reads as zero`,
    details: { size, length },
  };
}
