/** Whether a command that was run on a damaged image behaved: what counts as a finding, and when two findings are one. Pure. */
import type { Outcome } from './execute.ts';

export type FindingKind = 'crash' | 'hang' | 'memory' | 'growth' | 'status' | 'message';

export interface Verdict {
  readonly kind: FindingKind;
  /** For people. */
  readonly reason: string;
  /** Equal for what is most likely one mistake: kind, command, and the line that tells, without its numbers. */
  readonly signature: string;
}

export interface Rules {
  /** Exit statuses that are no finding. */
  readonly statuses: ReadonlySet<number>;
  /** Lines on standard error that are one. */
  readonly patterns: readonly RegExp[];
}

/** Success, failure, and what qemu-img has for check, compare and what is not supported. */
export const USUAL_STATUSES: readonly number[] = [0, 1, 2, 3, 63];

/** What programs say of themselves, not of the image: our own, Node's, those of sanitizers and of C. */
export const USUAL_PATTERNS: readonly RegExp[] = [
  /\binternal error\b/i,
  /^\S*(TypeError|RangeError|ReferenceError|SyntaxError|AssertionError)\b/,
  /\b(Unhandled|Uncaught|uncaughtException)\b/,
  /ERROR: (Address|Leak|Memory|Thread|UndefinedBehavior)Sanitizer|^\S+: runtime error:/,
  /Assertion .*failed|\bassertion failed\b|\bpanicked at\b/i,
  /heap out of memory|Segmentation fault|stack smashing detected|double free|corrupted size/i,
];

/** @param command what is run, by whatever tells it from the others
 *  @param directory names in it are not part of what is told
 *  @returns `undefined` when there is nothing to tell */
export function judge(outcome: Outcome, command: string, directory: string, rules: Rules): Verdict | undefined {
  const { status, signal, limit, stderr } = outcome;
  const lines = stderr.split(/\r?\n/).map((line) => line.replaceAll(`${directory}/`, '').trimEnd());
  const told = lines.find((line) => rules.patterns.some((pattern) => pattern.test(line)));
  const verdict = (kind: FindingKind, what: string): Verdict => {
    const signature = [kind, command, what, ...(told === undefined ? [] : [blurred(told)])].join(' | ');
    return { kind, reason: told === undefined ? what : `${what}: ${told}`, signature };
  };
  if (limit === 'time') return verdict('hang', 'did not end in time');
  if (limit === 'memory') return verdict('memory', 'used more memory than allowed');
  if (limit === 'growth') return verdict('growth', 'wrote more than allowed');
  if (signal !== undefined) return verdict('crash', `ended by ${signal}`);
  if (told !== undefined) return { ...verdict('message', 'said'), reason: told };
  if (status !== undefined && !rules.statuses.has(status)) return verdict('status', `ended with status ${status}`);
  return undefined;
}

/** Without numbers, addresses and names in quotes. */
function blurred(text: string): string {
  return text
    .replaceAll(/0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+/gi, '#')
    .replaceAll(/'[^']*'|"[^"]*"/g, '…')
    .slice(0, 200);
}
