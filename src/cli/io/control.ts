/** The commands about the shell itself: images opened, closed and reopened, sizes, breakpoints, waiting, signals. */
import { type BlockError, ERRNO_TEXT, errnoOf, isBlockError } from '../../base/errors.ts';
import { sleep as pause } from '../../base/job.ts';
import { type Breakpoints, breakpointsOf } from '../../core/breakpoints.ts';
import { Failure } from '../failure.ts';
import { changedSource, type ImageSource, parseImageSource, sourceOfOptions } from '../image-source.ts';
import { type ListedOption, parseOptionList } from '../option-list.ts';
import { describeError } from '../render/describe.ts';
import { bytesArgument, millisecondsArgument } from './numbers.ts';
import { aioArgument, cacheArgument, discardArgument, type OpenRequest } from './opening.ts';
import { lettersOf } from './read-write.ts';
import { type Refusal, refuse } from './refusal.ts';
import type { Session } from './session.ts';

// ── images ─────────────────────────────────────────────────────────────────────────────────────

/** What is opened where nothing is said: durable writes, as QEMU has it here. */
export const DEFAULTS: Omit<OpenRequest, 'source' | 'label'> = {
  readOnly: false,
  cache: 'writethrough',
  aio: 'threads',
  discard: 'unmap',
  overlay: false,
  copyOnRead: false,
  forceShare: false,
};

export async function open(session: Session, words: readonly string[]): Promise<void> {
  const request: { -readonly [K in keyof typeof DEFAULTS]: (typeof DEFAULTS)[K] } = { ...DEFAULTS };
  let options: ListedOption[] | undefined;
  const { operands, misused } = lettersOf(words, (letter, value) => {
    if (letter === 's') request.overlay = true;
    else if (letter === 'n') request.cache = 'none';
    else if (letter === 'C') request.copyOnRead = true;
    else if (letter === 'r') request.readOnly = true;
    else if (letter === 'U') request.forceShare = true;
    else if (letter === 'k') request.aio = 'native';
    else if (letter === 'i') request.aio = aioArgument(value);
    else if (letter === 't') request.cache = cacheArgument(value);
    else if (letter === 'd') request.discard = discardArgument(value);
    else if (letter === 'o') {
      if (session.imageOpts) throw refuse("--image-opts and 'open -o' are mutually exclusive");
      options = [...(options ?? []), ...parseOptionList(value)];
    }
  });
  if (operands.length > 1) throw misused();
  const [path] = operands;
  if (session.opened !== undefined) throw new Failure("file open already, try 'help close'");
  const source = namedSource(session, path, options);
  const label = session.imageOpts ? undefined : path;
  session.adopt(await session.opener.open({ ...request, source, label }));
}

function namedSource(
  session: Session,
  path: string | undefined,
  options: readonly ListedOption[] | undefined,
): ImageSource {
  try {
    if (path !== undefined && options === undefined) {
      return parseImageSource(path, { imageOpts: session.imageOpts, format: undefined });
    }
    const named = new Map((options ?? []).map(({ name, value }) => [name, value]));
    if (path !== undefined) named.set('file.filename', path);
    return sourceOfOptions(path ?? '', named);
  } catch (error) {
    throw session.opener.failure(session.imageOpts ? undefined : path, error);
  }
}

export async function close(session: Session): Promise<void> {
  await session.close();
}

/** Closes the image and opens it again as it is wanted now; as it was, where that cannot be done. */
export async function reopen(session: Session, words: readonly string[]): Promise<void> {
  let readOnly: boolean | undefined;
  let cache: OpenRequest['cache'] | undefined;
  const options: ListedOption[] = [];
  const { operands, misused } = lettersOf(words, (letter, value) => {
    if (letter === 'c') cache = cacheArgument(value);
    else if (letter === 'o') options.push(...parseOptionList(value));
    else {
      if (readOnly !== undefined) throw new Failure('Only one -r/-w option may be given');
      readOnly = letter === 'r';
    }
  });
  if (operands.length > 0) throw misused();
  const opened = session.opened;
  if (opened === undefined) return;
  const named = new Map(options.map(({ name, value }) => [name, value]));
  if (named.has('read-only') && readOnly !== undefined) throw new Failure("Cannot set both -r/-w and 'read-only'");
  if (cache !== undefined && (named.has('cache.direct') || named.has('cache.no-flush'))) {
    throw new Failure('Cannot set both -c and the cache options');
  }
  const { request } = opened;
  const wanted: OpenRequest = {
    ...request,
    source: await withChanges(session, request.source, options),
    readOnly: readOnly ?? request.readOnly,
    cache: cache ?? request.cache,
  };
  if (request.overlay) {
    if (named.size > 0 || wanted.readOnly)
      throw new Failure('A temporary overlay can be given another cache mode only');
    return;
  }
  await exchange(session, request, wanted);
}

/** The image's options with those of `named` in the place of what they were. */
async function withChanges(
  session: Session,
  source: ImageSource,
  changes: readonly ListedOption[],
): Promise<ImageSource> {
  const { format } = session.image;
  const known = await session.opener.openOptionNames(format);
  for (const { name, value } of changes) {
    if (name === 'driver' && value === format) continue;
    if (!known.has(name)) throw new Failure(`Cannot change the option '${name.replace(/^file\./, '')}'`);
  }
  return changes.length === 0 ? source : changedSource(source, changes);
}

async function exchange(session: Session, before: OpenRequest, wanted: OpenRequest): Promise<void> {
  await session.close();
  try {
    session.adopt(await session.opener.openAgain(wanted));
  } catch (error) {
    const reason = session.opener.failure(null, error);
    session.adopt(await session.opener.openAgain(before));
    throw reason;
  }
}

export async function truncate(session: Session, words: readonly string[]): Promise<void> {
  let preallocation: 'off' | 'metadata' | 'falloc' | 'full' | undefined;
  const { operands, misused } = lettersOf(words, (_, value) => {
    if (value !== 'off' && value !== 'metadata' && value !== 'falloc' && value !== 'full') {
      throw new Failure(`Invalid preallocation mode '${value}'`);
    }
    preallocation = value;
  });
  const [size] = operands;
  if (size === undefined) throw misused();
  const bytes = bytesArgument(size, session.cli);
  try {
    await session.image.resize(bytes, { shrink: true, preallocation });
  } catch (error) {
    if (!isBlockError(error) || error.code === 'INTERNAL' || error.code === 'ABORTED') throw error;
    const { text, hint } = describeError(error, session.cli.personality);
    throw new Failure(text, { cause: error, ...(hint === undefined ? {} : { trailer: hint }) });
  }
}

export async function flush(session: Session): Promise<void> {
  try {
    await session.image.flush();
  } catch (error) {
    // QEMU's command fails without a word; one is better.
    throw session.requestFailure('flush', error);
  }
}

export async function aioFlush(session: Session): Promise<void> {
  await session.drain();
}

// ── breakpoints ────────────────────────────────────────────────────────────────────────────────

/** Where no filter has any, or the filter says no. */
function breakpointFailure(what: string, error?: BlockError): Refusal {
  const errno = error === undefined ? 'ENOTSUP' : errnoOf(error);
  return refuse(`${what}: ${ERRNO_TEXT[errno]}`, error);
}

function withBreakpoints(session: Session, what: string, act: (breakpoints: Breakpoints) => void): void {
  const breakpoints = breakpointsOf(session.image.node);
  if (breakpoints === undefined) throw breakpointFailure(what);
  session.watch(breakpoints);
  try {
    act(breakpoints);
  } catch (error) {
    throw isBlockError(error) && error.code !== 'INTERNAL' ? breakpointFailure(what, error) : error;
  }
}

export function setBreak(session: Session, words: readonly string[]): void {
  const [, event = '', tag = ''] = words;
  withBreakpoints(session, 'Could not set breakpoint', (breakpoints) => breakpoints.set(event, tag));
}

export function removeBreak(session: Session, words: readonly string[]): void {
  const [, tag = ''] = words;
  withBreakpoints(session, `Could not remove breakpoint ${tag}`, (breakpoints) => breakpoints.remove(tag));
}

export function resume(session: Session, words: readonly string[]): void {
  const [, tag = ''] = words;
  withBreakpoints(session, 'Could not resume request', (breakpoints) => breakpoints.resume(tag));
}

/** Waits for a request to be held. QEMU's waits for ever where none can be. */
export async function waitBreak(session: Session, words: readonly string[]): Promise<void> {
  const [, tag = ''] = words;
  const what = `Could not wait for a request at ${tag}`;
  const breakpoints = breakpointsOf(session.image.node);
  if (breakpoints === undefined) throw breakpointFailure(what);
  session.watch(breakpoints);
  while (!breakpoints.isHeld(tag)) {
    if (session.outstanding === 0) throw refuse(`${what}: no request is under way`);
    await session.somethingHappens();
  }
}

// ── waiting and signals ────────────────────────────────────────────────────────────────────────

/** What a timer of the system takes at most. */
const LONGEST_TIMER = 2_147_483_647;

export async function sleep(session: Session, words: readonly string[]): Promise<void> {
  const { signal } = session.cli;
  let left = millisecondsArgument(words[1] as string);
  while (left > 0) {
    const part = Math.min(left, LONGEST_TIMER);
    await pause(part, signal);
    left -= part;
  }
}

/** Signals have numbers below this. */
const SIGNALS = 65;

export function sigraise(session: Session, words: readonly string[]): void {
  const text = words[1] as string;
  const number = bytesArgument(text, session.cli);
  if (number > SIGNALS) throw refuse(`signal argument '${text}' is too large to be a valid signal`);
  raise(number);
}

export function abort(): void {
  raise('SIGABRT');
}

/** The signal finds no handler: the program ends on the spot, if that is what the signal does. USR1 is ignored, as QEMU does. */
function raise(signal: number | NodeJS.Signals): void {
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.removeAllListeners(name);
  try {
    process.kill(process.pid, signal);
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'EINVAL' && !(error instanceof TypeError)) throw error;
    // No signal of this system: raising it is without effect.
  }
}
