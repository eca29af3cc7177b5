/** Locks on files between processes, as QEMU takes them, so that its programs and ours keep each other away from a live image (Node).
 *  Owns the bytes that stand for permissions, the order of locking and looking, and handing a claim from one opening of a file to another.
 *  A permission that is used is a read lock on byte 100+i, one that is not shared a read lock on byte 200+i. Read locks never exclude each other:
 *  a claimant locks first, then looks whether somebody else holds the opposite bytes. Two who come at once both see each other, and at worst both
 *  give up; they never both get it.
 *  The locks belong to the open file (OFD): they end with its last descriptor, a killed process included, and another opening of the file by the
 *  same process is a stranger.
 *  Invariants: a failed claim leaves the bytes locked that were locked before; a handed-over claim is never unlocked on one opening before it is
 *  locked on the other. */
import { BlockError, fromSystemError } from '../base/errors.ts';
import {
  ALL_PERMISSIONS,
  type Claim,
  type FileClaims,
  type LockState,
  NO_CLAIM,
  PERMISSION,
  PERMISSION_NAMES,
} from '../core/permissions.ts';
import type { LockingMode } from '../core/protocol.ts';
import { type Native, NOT_AVAILABLE } from '../platform/node/native.ts';

/** Offsets in the file; its size does not matter. */
const USED_BASE = 100;
const UNSHARED_BASE = 200;

export interface FileLocksOptions {
  /** As messages call it. */
  readonly name: string;
  readonly locking?: LockingMode | undefined;
  /** Whatever is claimed, everything is shared. */
  readonly forceShare?: boolean | undefined;
  readonly native: () => Native;
}

/** Where a claim was refused. */
interface Conflict {
  readonly permission: number;
  /** Somebody uses what we do not share, instead of not sharing what we use. */
  readonly shared: boolean;
}

export class FileLocks implements FileClaims {
  readonly #fd: number;
  readonly #options: FileLocksOptions;
  #held: Claim = NO_CLAIM;
  #missing: string | undefined;

  /** @param fd stays the caller's, who closes it. */
  constructor(fd: number, options: FileLocksOptions) {
    this.#fd = fd;
    this.#options = options;
  }

  get state(): LockState {
    if (this.#options.locking === 'off') return 'off';
    if (!isNothing(this.#held)) return 'held';
    this.#missing ??= this.#options.native().missing;
    return this.#missing === undefined ? 'none' : 'unavailable';
  }

  get missing(): string | undefined {
    return this.#missing;
  }

  claim(claim: Claim, from?: FileClaims): void {
    const next = this.#options.forceShare === true ? { ...claim, shares: ALL_PERMISSIONS } : claim;
    const before = this.#held;
    const older = from instanceof FileLocks && from !== this ? from : undefined;
    const handed = older === undefined ? NO_CLAIM : older.#held;
    const giveUp = (): void => {
      if (older !== undefined) older.#lock(NO_CLAIM);
    };
    if (this.#options.locking === 'off' || this.#missing !== undefined) {
      giveUp();
      return;
    }
    const more = both(before, next);
    if (isSame(more, before) && isNothing(handed)) {
      this.#lock(next);
      return;
    }
    try {
      const locked = this.#lock(both(more, handed));
      giveUp();
      if (!locked) return;
      const conflict = this.#conflict(next);
      if (conflict !== undefined) throw refused(this.#options.name, conflict, next);
      this.#lock(next);
    } catch (error) {
      // What it had is locked here still: nobody can have come between.
      if (older !== undefined) older.#lock(handed);
      this.#lock(before);
      throw error;
    }
  }

  /** Gives everything back before the file is closed. A child process that is just being started has a copy of the open file until its program
   *  runs, and with it the locks: closing alone would leave them for that moment. */
  release(): void {
    try {
      this.#lock(NO_CLAIM);
    } catch {
      // What cannot be unlocked ends with the file, which is closed next.
    }
  }

  /** Locks and unlocks bytes until they stand for `claim`.
   *  @returns false where there are no locks. */
  #lock(claim: Claim): boolean {
    for (let bit = 0; bit < PERMISSION_NAMES.length; bit++) {
      const used = has(claim.uses, bit);
      if (used !== has(this.#held.uses, bit)) {
        if (!this.#setByte(USED_BASE + bit, used)) return false;
        this.#held = { ...this.#held, uses: this.#held.uses ^ (1 << bit) };
      }
    }
    for (let bit = 0; bit < PERMISSION_NAMES.length; bit++) {
      const shared = has(claim.shares, bit);
      if (shared !== has(this.#held.shares, bit)) {
        if (!this.#setByte(UNSHARED_BASE + bit, !shared)) return false;
        this.#held = { ...this.#held, shares: this.#held.shares ^ (1 << bit) };
      }
    }
    return true;
  }

  #setByte(at: number, locked: boolean): boolean {
    const { name, native } = this.#options;
    const calls = native();
    let outcome: ReturnType<Native['lockByte']>;
    try {
      outcome = calls.lockByte(this.#fd, at, locked);
    } catch (error) {
      throw fromSystemError(error, `could not lock byte ${at} of "${name}"`, { name, byte: at });
    }
    if (outcome === 'done') return true;
    if (outcome === 'taken') {
      throw new BlockError('LOCKED', `"${name}": byte ${at} is locked by another program in a way of its own`, {
        reason: 'file.lock-byte',
        details: { name, byte: at },
      });
    }
    this.#giveUp(calls.missing ?? 'the file system has no locks of open files');
    return false;
  }

  /** @throws UNSUPPORTED where the caller insists on locks. */
  #giveUp(missing: string): void {
    const { name, locking } = this.#options;
    this.#held = NO_CLAIM;
    if (locking !== 'on') {
      this.#missing = missing;
      return;
    }
    throw new BlockError('UNSUPPORTED', `"${name}": locking=on, and no lock can be taken here: ${missing}`, {
      reason: 'file.locking',
      details: { name, missing },
    });
  }

  #conflict(claim: Claim): Conflict | undefined {
    for (let bit = 0; bit < PERMISSION_NAMES.length; bit++) {
      if (has(claim.uses, bit) && this.#isHeld(UNSHARED_BASE + bit)) return { permission: bit, shared: false };
    }
    for (let bit = 0; bit < PERMISSION_NAMES.length; bit++) {
      if (!has(claim.shares, bit) && this.#isHeld(USED_BASE + bit)) return { permission: bit, shared: true };
    }
    return undefined;
  }

  #isHeld(at: number): boolean {
    const { name, native } = this.#options;
    try {
      const held = native().byteIsLocked(this.#fd, at);
      return held !== NOT_AVAILABLE && held;
    } catch (error) {
      throw fromSystemError(error, `could not look at the locks of "${name}"`, { name, byte: at });
    }
  }
}

function has(set: number, bit: number): boolean {
  return (set & (1 << bit)) !== 0;
}

/** What is held while one claim takes the place of another. */
function both(a: Claim, b: Claim): Claim {
  return { uses: a.uses | b.uses, shares: a.shares & b.shares };
}

function isSame(a: Claim, b: Claim): boolean {
  return a.uses === b.uses && a.shares === b.shares;
}

function isNothing(claim: Claim): boolean {
  return isSame(claim, NO_CLAIM);
}

function refused(name: string, { permission, shared }: Conflict, claim: Claim): BlockError {
  const word = PERMISSION_NAMES[permission] as string;
  const onlyReads = (claim.uses & ~PERMISSION.consistentRead) === 0;
  const what = shared
    ? `another program uses it and holds the "${word}" lock, which this use does not share`
    : `another program uses it and does not share the "${word}" lock`;
  // Sharing everything helps who only reads, as long as the other one lets him read.
  const remedy = shared && onlyReads ? '; force-share (-U) reads it all the same' : '; close it there first';
  return new BlockError('LOCKED', `"${name}": ${what}${remedy}`, {
    reason: 'file.locked',
    details: { name, permission: word, shared },
  });
}
