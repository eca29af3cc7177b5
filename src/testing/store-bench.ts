/** What the cases of the store suite work with: a prepared store, and checks that throw. */
import type { MaybePromise, Pending } from '../base/async.ts';
import { type ErrorCode, isBlockError } from '../base/errors.ts';
import type { BlockNode } from '../core/node.ts';

/** The two functions of a test framework (vitest, jest, mocha, node:test have them). */
export interface TestFramework {
  describe(name: string, body: () => void): void;
  it(name: string, body: (context?: TestContextLike) => Promise<void>): void;
}

/** What vitest and node:test hand to a test; others hand over nothing. */
export interface TestContextLike {
  skip?(note?: string): unknown;
}

export interface StoreUnderTest {
  readonly store: BlockNode;
  /** Opens the same content again, after `store` was closed. Without it, tests of what lasts are left out. */
  reopen?(readOnly: boolean): MaybePromise<BlockNode>;
  /** Called last, after everything was closed. */
  dispose?(): MaybePromise<void>;
}

export interface StoreSuiteOptions extends TestFramework {
  /** What the tests are called after. */
  readonly name: string;
  /** A writable store. One that cannot grow must have at least 256 KiB; what it holds does not matter. */
  create(): MaybePromise<StoreUnderTest>;
  /** 1 by default. */
  readonly seed?: number;
  /** Steps of the random test; 150 by default. */
  readonly steps?: number;
  /** Bytes of the longest request; 1.5 MiB by default for stores that can grow. */
  readonly longest?: number;
  /** An offset beyond 4 GiB that costs no space to write to; tested where given and the store can grow. */
  readonly farOffset?: number;
}

/** Bytes that are written before each case. */
export const BASE_SIZE = 256 * 1024;

/** One prepared store, its size and what the suite needs around it. */
export interface Bench {
  readonly store: BlockNode;
  readonly subject: StoreUnderTest;
  readonly size: number;
  readonly align: number;
  readonly random: () => number;
  readonly options: StoreSuiteOptions;
  /** What went over `BASE_SIZE` bytes of the store. */
  readonly model: Uint8Array;
}

/** A test, and the stores it is for. */
export type Case = readonly [
  name: string,
  needs: (store: BlockNode, subject: StoreUnderTest, options: StoreSuiteOptions) => boolean,
  body: (bench: Bench) => Promise<void>,
];

export const always = (): boolean => true;
export const grows = (store: BlockNode): boolean => store.supports.truncate;
export const reopens = (_: BlockNode, subject: StoreUnderTest): boolean => subject.reopen !== undefined;
export const fixed = (store: BlockNode): boolean => !store.supports.truncate;

/** Starts a call so that a throw and a rejection look the same. */
export async function started(call: () => Pending): Promise<void> {
  await call();
}

export async function readBytes(store: BlockNode, offset: number, length: number): Promise<Uint8Array> {
  // not zero at first: a byte that is not filled shows
  const bytes = new Uint8Array(length).fill(0x5a);
  await store.read(offset, bytes);
  return bytes;
}

export function resized(model: Uint8Array, size: number): Uint8Array {
  const next = new Uint8Array(size);
  next.set(model.subarray(0, size));
  return next;
}

export function withBytes(model: Uint8Array, offset: number, data: Uint8Array): Uint8Array {
  const next = offset + data.length > model.length ? resized(model, offset + data.length) : model;
  next.set(data, offset);
  return next;
}

export function window(model: Uint8Array, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  bytes.set(model.subarray(Math.min(offset, model.length), Math.min(offset + length, model.length)));
  return bytes;
}

export function ensure(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(what);
}

export function ensureSame(got: Uint8Array, want: Uint8Array, offset: number): void {
  ensure(got.length === want.length, `${got.length} bytes instead of ${want.length}`);
  for (let i = 0; i < got.length; i++) {
    if (got[i] !== want[i]) throw new Error(`byte ${offset + i} is ${got[i]}, expected ${want[i]}`);
  }
}

export function ensureZero(got: Uint8Array, offset: number): void {
  const at = got.findIndex((byte) => byte !== 0);
  ensure(at < 0, `byte ${offset + at} is ${got[at]}, expected 0`);
}

export async function ensureCode(code: ErrorCode, call: () => MaybePromise<unknown>): Promise<void> {
  try {
    await call();
  } catch (error) {
    ensureErrorCode(code, error);
    return;
  }
  throw new Error(`${call} succeeded, expected ${code}`);
}

export function ensureErrorCode(code: ErrorCode, error: unknown): void {
  if (!isBlockError(error)) throw new Error(`expected a BlockError ${code}, got ${String(error)}`, { cause: error });
  ensure(error.code === code, `expected ${code}, got ${error.code}: ${error.message}`);
}
