/** The commands that move bytes: read, readv, write, writev, discard, and those that do it beside the others.
 *  Owns the order of their checks, which is QEMU's, and the buffers.
 *  Invariant: memory is bounded: long requests go through buffers of one size, one after the other. */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { ERRNO_TEXT, errnoOf } from '../../base/errors.ts';
import { Letters } from './getopt.ts';
import { bytesArgument, MAX_REQUEST, patternByte, requireSectors, totalLength } from './numbers.ts';
import { Refusal, refuse } from './refusal.ts';
import type { Session } from './session.ts';
import { findCommand, usageOf } from './table.ts';
import { dumpText, reportText } from './text.ts';

/** Bytes of a buffer: whole clusters of every size there is. */
const CHUNK = 32 * 1024 * 1024;
/** Bytes of a dump that are one text. */
const DUMP_CHUNK = 64 * 1024;
/** What is written where nothing else is asked for. */
const FILLING = 0xcd;

/** Letters that were given, with the values of those that have one. */
type Given = ReadonlyMap<string, string>;

interface Request {
  readonly given: Given;
  readonly offset: number;
  readonly length: number;
}

/** Reads the letters of a command. `onLetter` sees each as it comes and may refuse it. */
export function lettersOf(
  words: readonly string[],
  onLetter?: (letter: string, value: string) => void,
): { readonly given: Given; readonly operands: readonly string[]; readonly misused: () => Refusal } {
  const spec = findCommand(words[0] as string);
  if (spec === undefined) throw new Refusal({ err: `command "${words[0]}" not found\n` });
  const letters = new Letters(words, spec.letters, usageOf(spec));
  const given = new Map<string, string>();
  for (const { letter, value } of letters) {
    onLetter?.(letter, value);
    given.set(letter, value);
  }
  return { given, operands: letters.operands, misused: () => letters.misused() };
}

function checkPattern(letter: string, value: string): void {
  if (letter === 'P') patternByte(value);
}

/** A range as two operands. `limit` names what may be longer. */
function twoOperands(
  session: Session,
  operands: readonly string[],
  limit?: { readonly without: string },
): Omit<Request, 'given'> {
  const [at = '', count = ''] = operands;
  const offset = bytesArgument(at, session.cli);
  const length = bytesArgument(count, session.cli);
  if (length > MAX_REQUEST && limit !== undefined) {
    throw refuse(`length cannot exceed ${MAX_REQUEST}${limit.without}, given ${count}`);
  }
  return { offset, length };
}

/** A range as an offset and any number of lengths. */
function manyOperands(session: Session, operands: readonly string[]): Omit<Request, 'given'> {
  const [at = '', ...lengths] = operands;
  const offset = bytesArgument(at, session.cli);
  return { offset, length: totalLength(lengths, session.cli) };
}

// ── reading ────────────────────────────────────────────────────────────────────────────────────

interface Comparison {
  readonly byte: number;
  /** Bytes of the request, counted from its beginning. */
  readonly from: number;
  readonly length: number;
}

export async function read(session: Session, words: readonly string[]): Promise<void> {
  let from: number | undefined;
  let count: number | undefined;
  const { given, operands, misused } = lettersOf(words, (letter, value) => {
    checkPattern(letter, value);
    if (letter === 's') from = bytesArgument(value, session.cli);
    if (letter === 'l') count = bytesArgument(value, session.cli);
  });
  if (operands.length !== 2) throw misused();
  const { offset, length } = twoOperands(session, operands, { without: '' });
  if (!given.has('P') && (from !== undefined || count !== undefined)) throw misused();
  const start = from ?? 0;
  const end = start + (count ?? Math.max(0, length - start));
  if (start > length || end > length) throw refuse('pattern verification range exceeds end of read data');
  await readAndTell(session, 'read', { given, offset, length }, { from: start, length: end - start });
}

export async function readv(session: Session, words: readonly string[]): Promise<void> {
  const { given, operands, misused } = lettersOf(words, checkPattern);
  if (operands.length < 2) throw misused();
  await readAndTell(session, 'readv', { given, ...manyOperands(session, operands) });
}

export function aioRead(session: Session, words: readonly string[]): void {
  const { given, operands, misused } = lettersOf(words, checkPattern);
  if (given.has('i')) {
    invalid(session, 'read');
    return;
  }
  if (operands.length < 2) throw misused();
  const request = { given, ...manyOperands(session, operands) };
  session.start(async () => {
    const result = await readRequest(session, 'readv', request);
    return () => tellResult(session, request, result);
  });
}

async function readAndTell(
  session: Session,
  what: string,
  request: Request,
  part?: Omit<Comparison, 'byte'>,
): Promise<void> {
  const result = await readRequest(session, what, request, part);
  if (result.mismatch !== '') session.failed = true;
  await tellResult(session, request, result);
}

async function tellResult(session: Session, request: Request, { mismatch, report, buffer }: ReadResult): Promise<void> {
  const { out } = session.cli;
  out.write(mismatch);
  if (request.given.has('v') && !request.given.has('q')) await dump(session, request, buffer);
  out.write(report);
}

interface ReadResult {
  /** What was compared and differed, or nothing. */
  readonly mismatch: string;
  readonly report: string;
  /** What was read, where it fits into one buffer. */
  readonly buffer: Uint8Array;
}

async function readRequest(
  session: Session,
  what: string,
  request: Request,
  part: Omit<Comparison, 'byte'> = { from: 0, length: request.length },
): Promise<ReadResult> {
  const { given, offset, length } = request;
  const pattern = given.get('P');
  const comparison = pattern === undefined ? undefined : { byte: patternByte(pattern), ...part };
  const vmState = given.has('b');
  const begun = performance.now();
  let matches = true;
  const buffer = new Uint8Array(Math.min(length, CHUNK));
  try {
    let at = 0;
    do {
      const bytes = buffer.subarray(0, Math.min(buffer.length, length - at));
      await session.read(offset + at, bytes, vmState);
      if (comparison !== undefined && !equals(bytes, at, comparison)) matches = false;
      at += bytes.length;
    } while (at < length);
  } catch (error) {
    throw session.requestFailure(what, error);
  }
  const mismatch = matches ? '' : `Pattern verification failed at offset ${offset + part.from}, ${part.length} bytes\n`;
  return { mismatch, report: reportOf('read', request, performance.now() - begun), buffer };
}

/** Prints what was read. What did not fit into one buffer is read again. */
async function dump(session: Session, { given, offset, length }: Request, buffer: Uint8Array): Promise<void> {
  for (let at = 0; at < length; at += buffer.length) {
    const bytes = buffer.subarray(0, Math.min(buffer.length, length - at));
    if (length > buffer.length) await session.read(offset + at, bytes, given.has('b'));
    for (let from = 0; from < bytes.length; from += DUMP_CHUNK) {
      session.cli.out.write(dumpText(bytes.subarray(from, from + DUMP_CHUNK), offset + at + from));
    }
  }
}

/** Whether the bytes, which begin at `at` of the request, are what is expected there. */
function equals(bytes: Uint8Array, at: number, { byte, from, length }: Comparison): boolean {
  const end = Math.min(bytes.length, from + length - at);
  for (let i = Math.max(0, from - at); i < end; i++) if (bytes[i] !== byte) return false;
  return true;
}

function reportOf(did: string, { given, offset, length }: Request, milliseconds: number): string {
  return given.has('q') ? '' : reportText({ did, offset, length, milliseconds, brief: given.has('C') });
}

function invalid(session: Session, what: 'read' | 'write'): void {
  session.cli.out.write(`injecting invalid ${what} request\n`);
}

// ── writing ────────────────────────────────────────────────────────────────────────────────────

export async function write(session: Session, words: readonly string[]): Promise<void> {
  const { given, operands, misused } = lettersOf(words, checkPattern);
  if (operands.length !== 2) throw misused();
  checkCombination(given);
  const free = given.has('n') ? undefined : { without: ' without -n' };
  const { offset, length } = twoOperands(session, operands, free);
  if (given.has('b') || given.has('c')) {
    requireSectors(offset, 'offset');
    requireSectors(length, 'count');
  }
  const source = given.get('s');
  const content = source === undefined ? undefined : repeatedFile(source, length);
  await writeAndTell(session, 'write', { given, offset, length }, content);
}

function checkCombination(given: Given): void {
  const has = (letter: string): boolean => given.has(letter);
  if (has('b') && has('z')) throw refuse('-b and -z cannot be specified at the same time');
  if (has('f') && (has('b') || has('c'))) throw refuse('-f and -b or -c cannot be specified at the same time');
  if (has('n') && !has('z')) throw refuse('-n requires -z to be specified');
  if (has('u') && !has('z')) throw refuse('-u requires -z to be specified');
  if (Number(has('z')) + Number(has('P')) + Number(has('s')) > 1) {
    throw refuse('Only one of -z, -P, and -s can be specified at the same time');
  }
}

export async function writev(session: Session, words: readonly string[]): Promise<void> {
  const { given, operands, misused } = lettersOf(words, checkPattern);
  if (operands.length < 2) throw misused();
  await writeAndTell(session, 'writev', { given, ...manyOperands(session, operands) });
}

export function aioWrite(session: Session, words: readonly string[]): void {
  const { given, operands, misused } = lettersOf(words, checkPattern);
  if (operands.length < 2) throw misused();
  if (given.has('u') && !given.has('z')) throw refuse('-u requires -z to be specified');
  if (given.has('i')) {
    invalid(session, 'write');
    return;
  }
  if (given.has('z') && operands.length !== 2) throw refuse('-z supports only a single length parameter');
  const range = given.has('z') ? twoOperands(session, operands) : manyOperands(session, operands);
  session.start(async () => {
    const text = await writeRequest(session, 'aio_write', { given, ...range });
    return () => session.cli.out.write(text);
  });
}

async function writeAndTell(session: Session, what: string, request: Request, content?: Content): Promise<void> {
  session.cli.out.write(await writeRequest(session, what, request, content));
}

/** Gives the bytes of a request from `at` on. */
type Content = (at: number, into: Uint8Array) => void;

async function writeRequest(session: Session, what: string, request: Request, content?: Content): Promise<string> {
  const { given, offset, length } = request;
  const begun = performance.now();
  try {
    if (given.has('z')) {
      const options = { unmap: given.has('u'), fastOnly: given.has('n') };
      const zero = () => session.image.node.writeZeroes(offset, length, options);
      await session.change(offset, length, given.has('f'), zero);
    } else await writeBytes(session, request, content);
  } catch (error) {
    throw session.requestFailure(what, error);
  }
  return reportOf('wrote', request, performance.now() - begun);
}

async function writeBytes(session: Session, { given, offset, length }: Request, content?: Content): Promise<void> {
  const { image } = session;
  const pattern = given.get('P');
  const buffer = new Uint8Array(Math.min(length, CHUNK));
  if (content === undefined) buffer.fill(pattern === undefined ? FILLING : patternByte(pattern));
  const compressed = given.has('c');
  let at = 0;
  do {
    const place = offset + at;
    const bytes = buffer.subarray(0, Math.min(buffer.length, length - at));
    content?.(at, bytes);
    const isLast = at + bytes.length >= length;
    await session.change(place, bytes.length, given.has('f') && isLast, () =>
      given.has('b') ? image.node.writeVmState(place, bytes) : image.write(place, bytes, { compressed }),
    );
    at += bytes.length;
  } while (at < length);
}

/** What a file holds, at most `length` bytes of it, again and again.
 *  @throws {@link Refusal} in the words of the system. */
function repeatedFile(name: string, length: number): Content {
  const pattern = beginningOf(name, Math.min(length, CHUNK));
  if (pattern.length === 0) throw new Refusal({ err: `${name}: file is empty\n` });
  if (pattern.length === CHUNK && length > CHUNK) return rereadFile(name);
  return (at, into) => {
    for (let done = 0; done < into.length; ) {
      const from = (at + done) % pattern.length;
      const count = Math.min(pattern.length - from, into.length - done);
      into.set(pattern.subarray(from, from + count), done);
      done += count;
    }
  };
}

/** As {@link repeatedFile}, for files that are longer than a buffer. */
function rereadFile(name: string): Content {
  return (at, into) => {
    for (let done = 0; done < into.length; ) {
      const count = fromFile(name, (fd, size) => {
        const from = (at + done) % size;
        return readSync(fd, into, done, Math.min(into.length - done, size - from), from);
      });
      if (count === 0) throw new Refusal({ err: `${name}: file is empty\n` });
      done += count;
    }
  };
}

function beginningOf(name: string, length: number): Uint8Array {
  return fromFile(name, (fd) => {
    const bytes = new Uint8Array(length);
    let done = 0;
    for (let count = -1; count !== 0 && done < length; done += count)
      count = readSync(fd, bytes, done, length - done, null);
    return bytes.subarray(0, done);
  });
}

function fromFile<T>(name: string, body: (fd: number, size: number) => T): T {
  let fd: number | undefined;
  try {
    fd = openSync(name, 'r');
    return body(fd, fstatSync(fd).size);
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal({ err: `${name}: ${ERRNO_TEXT[errnoOf(error)] ?? 'Input/output error'}\n` }, error);
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

// ── discarding ─────────────────────────────────────────────────────────────────────────────────

export async function discard(session: Session, words: readonly string[]): Promise<void> {
  const { given, operands, misused } = lettersOf(words);
  if (operands.length !== 2) throw misused();
  const { offset, length } = twoOperands(session, operands, { without: '' });
  const begun = performance.now();
  try {
    await session.change(offset, length, false, () => session.image.node.discard(offset, length));
  } catch (error) {
    throw session.requestFailure('discard', error);
  }
  session.cli.out.write(reportOf('discard', { given, offset, length }, performance.now() - begun));
}
