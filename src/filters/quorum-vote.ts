/** Votes of a quorum: which of several contents, or failures, is that of the most. Pure.
 *  Behaviour: QEMU's quorum. Where two have equally many votes, the one that turned up last wins, as there. */
import { errnoOf } from '../base/errors.ts';
import { areEqual } from '../bytes/equal.ts';

export interface Version<T> {
  readonly value: T;
  /** Who voted for it, in order. */
  readonly voters: readonly number[];
}

/** The versions of what the voters say, in the order in which they turned up. `undefined`: no vote. */
export function versionsOf<T>(votes: readonly (T | undefined)[], same: (a: T, b: T) => boolean): Version<T>[] {
  const versions: { value: T; voters: number[] }[] = [];
  votes.forEach((vote, voter) => {
    if (vote === undefined) return;
    const known = versions.find(({ value }) => same(value, vote));
    if (known === undefined) versions.push({ value: vote, voters: [voter] });
    else known.voters.push(voter);
  });
  return versions;
}

export function winnerOf<T>(versions: readonly Version<T>[]): Version<T> | undefined {
  let winner: Version<T> | undefined;
  for (const version of versions) {
    if (winner === undefined || version.voters.length >= winner.voters.length) winner = version;
  }
  return winner;
}

export function sameContent(a: Uint8Array, b: Uint8Array): boolean {
  return areEqual(a, b, 0, a.length);
}

/** The failure that the most had. */
export function commonFailure(failures: readonly unknown[]): unknown {
  const given = failures.map((error) => (error === undefined ? undefined : { error, errno: errnoOf(error) }));
  return winnerOf(versionsOf(given, (a, b) => a.errno === b.errno))?.value.error;
}
