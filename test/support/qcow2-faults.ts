/** Faults at the named steps of qcow2, by blkdebug: one path of the format, one event, one error, once or for good; what the caller is told, and
 *  what becomes of the image. */
import { expect } from 'vitest';
import { isBlockError } from '../../src/base/errors.ts';
import type { ImageEvent } from '../../src/core/format.ts';
import type { MappedNode } from '../../src/core/mapped-node.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { blkdebug } from '../../src/filters/blkdebug.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { InterceptedStore, type Operation } from '../../src/testing/intercepted-store.ts';
import { openFilter } from './filters.ts';
import { openDisk, pattern, readAll } from './qcow2-parts.ts';
import { checkQcow2 } from './qcow2-under-test.ts';

export interface PathUnderTest {
  /** What the file holds before, and its data file. */
  image(): Promise<{ readonly file: Uint8Array; readonly data?: Uint8Array | undefined }>;
  readonly backing?: Uint8Array;
  /** The path itself. What it reads it compares. */
  act(node: MappedNode): Promise<unknown> | undefined;
  /** Every event of the path, of the flush after it and of closing, in the order in which they come first. */
  readonly events: readonly string[];
  /** Requests whose failure costs space or nothing and is no failure of the path. */
  readonly hints?: readonly Operation['kind'][];
  /** Where the error of the path leaves nobody knowing which header the file has, later requests are refused. */
  readonly mayCondemn?: boolean;
  /** Nothing is asked of the file that could fail. */
  readonly asksNothing?: boolean;
  /** It may be left dirty, and is repaired by who opens it. */
  readonly lazy?: boolean;
}

export interface Fault {
  readonly event: string;
  /** The how manieth of them, from 0. */
  readonly nth: number;
  readonly errno: 5 | 28;
  readonly once: boolean;
  /** Which requests after the event fail. */
  readonly ioType: 'any' | 'flush';
  /** What comes after the failure: the path is tried again, the image is closed, or something else is written first. */
  readonly next: 'again' | 'close' | 'other';
}

const ERRNO = { 5: 'EIO', 28: 'ENOSPC' } as const;
/** Events that qcow2 never raises: here they tell the rules when to begin and when to stop. */
const BEGIN = 'cluster_alloc_space';
const HEAL = 'cor_write';
/** States: not begun 1, healed 2, begun this and on. */
const BEGUN = 3;

/** Sees what the format asks of the file, and what fails. */
class Witness extends InterceptedStore {
  readonly events: string[] = [];
  readonly failed: Operation['kind'][] = [];
  watching = false;

  protected _around(operation: Operation, run: () => Promise<void> | undefined): Promise<void> | undefined {
    if (this.watching && operation.event !== undefined) this.events.push(operation.event);
    try {
      return run()?.catch((error: unknown) => {
        this.failed.push(operation.kind);
        throw error;
      });
    } catch (error) {
      this.failed.push(operation.kind);
      throw error;
    }
  }
}

interface Opened {
  readonly node: MappedNode;
  readonly witness: Witness;
  readonly reports: readonly ImageEvent[];
  readonly file: MemoryStore;
  readonly data: MemoryStore | undefined;
}

async function open(
  path: PathUnderTest,
  rules: Record<string, string>,
  around: (store: MemoryStore) => BlockNode = (store) => store,
): Promise<Opened> {
  const { file, data } = await path.image();
  const store = MemoryStore.from(file, { pageSize: 512 });
  const dataFile = data && MemoryStore.from(data, { pageSize: 512 });
  const filter = await openFilter(blkdebug, { children: { image: around(store) }, options: rules });
  const witness = new Witness(filter);
  const { node, events } = await openDisk(store, {
    around: () => witness,
    ...(path.backing === undefined ? {} : { backing: MemoryStore.from(path.backing) }),
    ...(dataFile === undefined ? {} : { dataFile }),
  });
  return { node, witness, reports: events, file: store, data: dataFile };
}

/** What the path is without faults: events, steps of writes here included; and the contents before and after. */
export interface Undisturbed {
  readonly events: readonly string[];
  readonly before: Contents;
  readonly after: Contents;
}

export interface Contents {
  readonly disk: Uint8Array;
  /** Names of snapshots. */
  readonly snapshots: string;
}

export async function undisturbed(path: PathUnderTest): Promise<Undisturbed> {
  const start = await path.image();
  const kinds = new Set<string>();
  const { node, witness, file, data } = await open(
    path,
    {},
    (store) =>
      new (class extends InterceptedStore {
        protected _around(operation: Operation, run: () => Promise<void> | undefined) {
          if (witnessing) kinds.add(operation.kind);
          return run();
        }
      })(store),
  );
  var witnessing = true;
  witness.watching = true;
  await path.act(node);
  await node.flush();
  await node.close();
  const steps = [
    ...(kinds.has('write') ? ['pwritev', 'pwritev_done'] : []),
    ...(kinds.has('zeroes') ? ['pwritev_zero'] : []),
  ];
  return {
    events: [...new Set(witness.events), ...steps],
    before: await contentsOf(path, start.file, start.data),
    after: await contentsOf(path, file.bytes(), data?.bytes()),
  };
}

async function contentsOf(path: PathUnderTest, file: Uint8Array, data: Uint8Array | undefined): Promise<Contents> {
  const { node } = await openDisk(MemoryStore.from(file), {
    readOnly: true,
    ...(path.backing === undefined ? {} : { backing: MemoryStore.from(path.backing) }),
    ...(data === undefined ? {} : { dataFile: MemoryStore.from(data) }),
  });
  const seen = await contents(node);
  await node.close();
  return seen;
}

async function contents(node: MappedNode): Promise<Contents> {
  const names = (node.format.snapshots?.list() ?? []).map(({ id, name }) => `${id} ${name}`);
  return { disk: await readAll(node), snapshots: names.join() };
}

/** Every byte is one of the two: requests that fail may have been carried out in part. */
function expectEither(found: Contents, { before, after }: Undisturbed, what: string): void {
  const sizes = [before.disk.length, after.disk.length];
  expect(sizes, `${what}: size of the disk`).toContain(found.disk.length);
  expect([before.snapshots, after.snapshots], `${what}: snapshots`).toContain(found.snapshots);
  for (let at = 0; at < found.disk.length; at++) {
    const byte = found.disk[at];
    if (byte !== (before.disk[at] ?? 0) && byte !== (after.disk[at] ?? 0)) {
      throw new Error(`${what}: byte ${at} is ${byte}, which is neither old nor new`);
    }
  }
}

function expectSame(found: Contents, wanted: Contents, what: string): void {
  expect(found.snapshots, `${what}: snapshots`).toBe(wanted.snapshots);
  expect(Buffer.compare(found.disk, wanted.disk), `${what}: content of the disk`).toBe(0);
}

/** The error that something ends with. */
async function errorOf(body: () => unknown): Promise<unknown> {
  try {
    await body();
    return undefined;
  } catch (error) {
    return error ?? new Error('nothing was thrown');
  }
}

function rulesOf({ event, nth, errno, once, ioType }: Fault): Record<string, string> {
  const rules: Record<string, string> = {
    'set-state.0.event': BEGIN,
    'set-state.0.state': '1',
    'set-state.0.new_state': String(BEGUN),
    'set-state.1.event': HEAL,
    'set-state.1.new_state': '2',
    'inject-error.0.event': HEAL,
    'inject-error.0.errno': '0',
    'inject-error.1.event': event,
    'inject-error.1.state': String(BEGUN + nth),
    'inject-error.1.errno': String(errno),
    'inject-error.1.once': once ? 'on' : 'off',
  };
  if (ioType !== 'any') rules['inject-error.1.iotype'] = ioType;
  for (let i = 0; i < nth; i++) {
    rules[`set-state.${2 + i}.event`] = event;
    rules[`set-state.${2 + i}.state`] = String(BEGUN + i);
    rules[`set-state.${2 + i}.new_state`] = String(BEGUN + i + 1);
  }
  return rules;
}

/** @returns whether the fault came to anything. */
export async function underFault(path: PathUnderTest, calm: Undisturbed, fault: Fault): Promise<boolean> {
  const what = JSON.stringify(fault);
  const { node, witness, reports, file, data } = await open(path, rulesOf(fault));
  const signal = (event: string): Promise<void> => Promise.resolve(witness.inner.event?.(event));
  await signal(BEGIN);
  let stage: 'act' | 'flush' | 'close' = 'act';
  let error = await errorOf(() => path.act(node));
  if (error === undefined) {
    stage = 'flush';
    error = await errorOf(() => node.flush());
  }
  if (error === undefined) {
    stage = 'close';
    error = await errorOf(() => node.close());
  }
  const failed = [...witness.failed];
  await signal(HEAL);
  expectTold(error, failed, path, fault, reports, what);
  if (error === undefined || stage === 'close') {
    await expectSound(path, calm, file, data, error === undefined, what);
    return failed.length > 0;
  }
  const usable = await isUsable(node, path, fault, what);
  if (usable && fault.next === 'again') await tryAgain(path, calm, node, stage, what);
  const other = usable && fault.next === 'other' ? await writeOther(calm, node) : undefined;
  const closing = await errorOf(() => node.close());
  // What nobody knows the state of is not written to any more.
  if (closing !== undefined) throw new Error(`${what}: it cannot be closed`, { cause: closing });
  await expectSound(path, other === undefined ? calm : withOther(calm, other), file, data, false, what);
  return true;
}

function expectTold(
  error: unknown,
  failed: readonly Operation['kind'][],
  path: PathUnderTest,
  { errno }: Fault,
  reports: readonly ImageEvent[],
  what: string,
): void {
  if (error !== undefined) {
    if (!isBlockError(error)) throw new Error(`${what}: no error of ours`, { cause: error });
    expect(errnoBehind(error), `${what}: ${String(error)}`).toBe(ERRNO[errno]);
    return;
  }
  const lost = failed.filter((kind) => path.hints?.includes(kind) !== true);
  expect(lost, `${what}: requests that failed, and nobody was told`).toEqual([]);
  // A hint that is more than one is told of otherwise.
  if (failed.includes('truncate'))
    expect(
      reports.map(({ type }) => type),
      what,
    ).toContain('warning');
}

function errnoBehind(error: unknown): unknown {
  for (let at = error; isBlockError(at); at = at.cause)
    if (at.details['errno'] !== undefined) return at.details['errno'];
  return undefined;
}

/** Not where nobody knows which of two headers the file has. */
async function isUsable(node: MappedNode, path: PathUnderTest, { once }: Fault, what: string): Promise<boolean> {
  const refused = await errorOf(() => node.read(0, new Uint8Array(0)));
  if (refused === undefined) return true;
  expect(path.mayCondemn === true && !once, `${what}: ${String(refused)}`).toBe(true);
  return false;
}

/** What every path leaves alone, and every size has. */
async function writeOther({ before, after }: Undisturbed, node: MappedNode): Promise<Other> {
  const offset = Math.min(before.disk.length, after.disk.length) - 900;
  const bytes = pattern(700, 77);
  await node.write(offset, bytes);
  await node.flush();
  return { offset, bytes };
}

interface Other {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

function withOther(calm: Undisturbed, { offset, bytes }: Other): Undisturbed {
  const [before, after] = [calm.before, calm.after].map(({ disk, snapshots }) => {
    const changed = disk.slice();
    changed.set(bytes, offset);
    return { disk: changed, snapshots };
  }) as [Contents, Contents];
  return { ...calm, before, after };
}

async function tryAgain(
  path: PathUnderTest,
  calm: Undisturbed,
  node: MappedNode,
  stage: 'act' | 'flush',
  what: string,
): Promise<void> {
  const found = await contents(node);
  if (stage === 'act') {
    expectEither(found, calm, what);
    await path.act(node);
  }
  expectSame(await contents(node), calm.after, `${what}, after the second try`);
  await node.flush();
}

/** What the file holds can be opened, is sound but for leaks, and holds what it may hold. */
async function expectSound(
  path: PathUnderTest,
  calm: Undisturbed,
  file: MemoryStore,
  data: MemoryStore | undefined,
  complete: boolean,
  what: string,
): Promise<void> {
  let bytes = file.bytes();
  if (path.lazy === true) {
    const store = MemoryStore.from(bytes);
    await (
      await openDisk(store, path.backing === undefined ? {} : { backing: MemoryStore.from(path.backing) })
    ).node.close();
    bytes = store.bytes();
  }
  const { lines, checkErrors } = await checkQcow2(MemoryStore.from(bytes));
  expect({ lines, checkErrors }, what).toEqual({ lines: [], checkErrors: 0 });
  const found = await contentsOf(path, bytes, data?.bytes());
  if (complete) expectSame(found, calm.after, what);
  else expectEither(found, calm, what);
}
