/** Key slots changed by amending, in the terms of QEMU's options, for every format that holds a LUKS volume. Owns what the options mean
 *  together; the slots themselves are the volume's.
 *  Invariant: passwords are asked for as late as possible, and wiped when they were used. */
import { fault } from './fault.ts';
import type { LuksVolume } from './luks.ts';

/** As the user gave them. */
export interface KeyAmendment {
  /** `active`: a key is added; `inactive`: keys are erased. */
  readonly state?: string | undefined;
  /** Ids of secrets. */
  readonly newSecret?: string | undefined;
  readonly oldSecret?: string | undefined;
  readonly keyslot?: number | undefined;
  /** Milliseconds. */
  readonly iterTime?: number | undefined;
}

export interface KeyAmendmentRun {
  /** What messages begin with. */
  readonly subject: string;
  /** The secret that the image was opened with. */
  readonly keySecret: string;
  /** @returns a copy. @throws {@link BlockError} NOT_FOUND */
  secret(id: string): Uint8Array;
  readonly force?: boolean | undefined;
  /** As that of `LuksVolume.unlock`. */
  readonly roundLimit?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Adds a key, or erases keys. Durable when it ends; interrupted, at most the slot that was worked on is lost.
 *  @throws {@link BlockError} OPTION `luks.amend-state`, `luks.amend-state-value`, `luks.amend-new-missing`, `luks.amend-old-given`,
 *  `luks.amend-new-given`, `luks.amend-iter-given`; NOT_FOUND `secret.missing`; as {@link LuksVolume.addKey} and {@link LuksVolume.eraseKeys}. */
export async function amendKeys(volume: LuksVolume, asked: KeyAmendment, run: KeyAmendmentRun): Promise<void> {
  requireKeyAmendment(asked, run.subject);
  if (asked.newSecret !== undefined) await addKey(volume, asked.newSecret, asked, run);
  else await eraseKeys(volume, asked, run);
}

/** What is wrong with the options together; asks for no password.
 *  @throws {@link BlockError} OPTION `luks.amend-…`, as {@link amendKeys}. */
export function requireKeyAmendment(asked: KeyAmendment, subject: string): void {
  const { state, newSecret, oldSecret, iterTime } = asked;
  if (state === undefined) {
    throw fault(subject, 'amend-state', 'state must be given: active or inactive', {}, 'OPTION');
  }
  if (state !== 'active' && state !== 'inactive') {
    const what = `state is active or inactive, not "${state}"`;
    throw fault(subject, 'amend-state-value', what, { value: state }, 'OPTION');
  }
  if (state === 'active') {
    if (newSecret === undefined) {
      const what = 'a key slot becomes active by a password: give new-secret';
      throw fault(subject, 'amend-new-missing', what, {}, 'OPTION');
    }
    if (oldSecret === undefined) return;
    throw fault(subject, 'amend-old-given', 'old-secret is for erasing; the image is open already', {}, 'OPTION');
  }
  if (newSecret !== undefined) {
    throw fault(subject, 'amend-new-given', 'new-secret has no meaning where keys are erased', {}, 'OPTION');
  }
  if (iterTime === undefined) return;
  throw fault(subject, 'amend-iter-given', 'iter-time has no meaning where keys are erased', {}, 'OPTION');
}

async function addKey(
  volume: LuksVolume,
  newSecret: string,
  { keyslot, iterTime }: KeyAmendment,
  run: KeyAmendmentRun,
): Promise<void> {
  const { force, roundLimit, signal } = run;
  const unlock = run.secret(run.keySecret);
  let passphrase: Uint8Array | undefined;
  try {
    passphrase = run.secret(newSecret);
    await volume.addKey({ unlock, passphrase, slot: keyslot, iterTime, force, roundLimit, signal });
  } finally {
    unlock.fill(0);
    passphrase?.fill(0);
  }
}

async function eraseKeys(
  volume: LuksVolume,
  { oldSecret, keyslot }: KeyAmendment,
  run: KeyAmendmentRun,
): Promise<void> {
  const { force, roundLimit, signal } = run;
  const passphrase = oldSecret === undefined ? undefined : run.secret(oldSecret);
  try {
    await volume.eraseKeys({ passphrase, slot: keyslot, force, roundLimit, signal });
  } finally {
    passphrase?.fill(0);
  }
}
