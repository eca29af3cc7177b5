/** Audits: what an image holds that would touch the host or abuse whoever reads it, told without following it.
 *  Owns the contract of a format's audit, the list of findings and its bounds.
 *  Invariants: an audit reads the one file it is given and opens nothing; what an image says never makes it throw; of each rule so many findings are
 *  kept and the others counted, so that no image makes a list without end; every text that came from an image is made safe for a terminal. */
import { throwIfAborted } from '../base/job.ts';
import { isZero } from '../bytes/zeros.ts';
import type { ByteStore } from './store.ts';

/** `info`: a fact that somebody who gets the image from strangers wants to know. `low`: unusual, and harmless to whoever reads the disk.
 *  `medium`: leads out of the image, costs the reader more than the image is worth, or shows readers different disks. `high`: what attacks look
 *  like. */
export const AUDIT_SEVERITIES = ['info', 'low', 'medium', 'high'] as const;
export type AuditSeverity = (typeof AUDIT_SEVERITIES)[number];

/** One thing that audits look for. */
export interface AuditRule {
  /** Stable: `room.finding`. */
  readonly id: string;
  readonly severity: AuditSeverity;
  /** What it is and why it matters: a sentence for the reference. */
  readonly meaning: string;
  /** What to do about it. */
  readonly remedy: string;
}

/** Where in the file something was found, and what. */
export interface AuditPlace {
  /** In the file, bytes. */
  readonly offset?: number | undefined;
  /** Name of the field or structure. */
  readonly field?: string | undefined;
  /** What stands there; texts as they are, for programs. */
  readonly value?: string | number | undefined;
}

export interface AuditFinding extends AuditPlace {
  readonly id: string;
  readonly severity: AuditSeverity;
  /** One line, fit for a terminal. */
  readonly message: string;
  readonly remedy: string;
}

/** How many findings of one rule are kept. */
const KEPT = 8;

/** The findings of one image. */
export class AuditBook {
  readonly #findings: AuditFinding[] = [];
  readonly #counts = new Map<string, number>();

  /** @param message is not asked for where enough of the kind were found: hot loops give a function. */
  add({ id, severity, remedy }: AuditRule, place: AuditPlace, message: string | (() => string)): void {
    const count = (this.#counts.get(id) ?? 0) + 1;
    this.#counts.set(id, count);
    if (count > KEPT) return;
    const text = typeof message === 'string' ? message : message();
    const { offset, field, value } = place;
    this.#findings.push({
      id,
      severity,
      message: text,
      ...(offset === undefined || !Number.isFinite(offset) ? {} : { offset }),
      ...(field === undefined ? {} : { field }),
      ...(value === undefined ? {} : { value }),
      remedy,
    });
  }

  has(rule: AuditRule): boolean {
    return this.#counts.has(rule.id);
  }

  /** The gravest first; of one severity in the order found. */
  get findings(): readonly AuditFinding[] {
    const rank = ({ severity }: AuditFinding): number => AUDIT_SEVERITIES.indexOf(severity);
    return [...this.#findings].sort((a, b) => rank(b) - rank(a));
  }

  /** Of each rule of which there were more: how many are not among the findings. */
  get more(): Readonly<Record<string, number>> {
    const more: Record<string, number> = {};
    for (const [id, count] of this.#counts) if (count > KEPT) more[id] = count - KEPT;
    return more;
  }
}

export interface AuditContext {
  /** Open for reading. */
  readonly file: ByteStore;
  /** What the image is called; names in it are never resolved against it, only compared. */
  readonly name: string;
  /** Other formats whose probing would take the file for theirs. */
  readonly looksLike: readonly string[];
  /** Formats that an image may name for its files. */
  readonly formatNames: readonly string[];
  readonly book: AuditBook;
  readonly signal?: AbortSignal | undefined;
}

/** What a format can tell of an image that need not be fit to be opened. */
export interface AuditFacet {
  /** Everything that {@link audit} may find, apart from the common rules. */
  readonly rules: readonly AuditRule[];
  /** @throws {@link BlockError} for what the file's store fails with, and ABORTED; never for what the image holds. */
  audit(context: AuditContext): Promise<void>;
}

const LONGEST = 160;

/** A text from an image in quotes, with everything spelt out that a terminal would obey, or that looks like nothing or like something else. */
export function shown(text: string): string {
  const cut = text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
  return `"${cut.replace(UNSAFE, escaped)}"`;
}

function escaped(character: string): string {
  return `\\u{${(character.codePointAt(0) as number).toString(16)}}`;
}

/** Control characters, marks that turn or hide text, lone halves of pairs, and what stands for bytes that are no UTF-8. */
const UNSAFE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\ufffd]/gu;
const OBEYED = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u;

/** Whether a terminal, or whoever reads a list of names, could be led astray by it. */
export function isDeceptive(text: string): boolean {
  return OBEYED.test(text);
}

/** Bytes of the file, zeros behind its end, whatever the alignment of its requests. The buffer is the caller's. */
export async function readBytes(file: ByteStore, offset: number, length: number): Promise<Uint8Array> {
  const align = file.limits.requestAlign;
  const start = offset - (offset % align);
  const bytes = new Uint8Array(Math.ceil((offset - start + length) / align) * align);
  await file.read(start, bytes);
  return bytes.subarray(offset - start, offset - start + length);
}

const PIECE = 1024 * 1024;
/** Bytes of one range that are looked at from its beginning, and at its end. */
const FROM_START = 32 * PIECE;
const AT_END = PIECE;

/** What of a range is not zero. */
export interface Content {
  /** The first byte that was found, in the file; `undefined`: none. */
  readonly at: number | undefined;
  /** Bytes in the middle that nobody looked at. */
  readonly unread: number;
}

/** Looks for content in `[start, end)` of the file: in the first 32 MiB and the last one. */
export async function findContent(context: AuditContext, start: number, end: number): Promise<Content> {
  const { file, signal } = context;
  const last = Math.min(end, file.size);
  const stop = Math.min(last, start + FROM_START);
  const tail = Math.max(stop, last - AT_END);
  for (const [from, to] of [
    [start, stop],
    [tail, last],
  ] as const) {
    for (let at = from; at < to; at += PIECE) {
      throwIfAborted(signal);
      const bytes = await readBytes(file, at, Math.min(PIECE, to - at));
      if (!isZero(bytes)) return { at: at + bytes.findIndex((byte) => byte !== 0), unread: 0 };
    }
  }
  return { at: undefined, unread: Math.max(0, tail - stop) };
}
