/** blkverify: two children that must hold the same. Writes go to both, reads come from both and are compared: the test one is what is tested,
 *  the raw one what it should be.
 *  Invariants: both requests have ended before the caller is told anything; a difference is an error, never silently one of the two contents. */
import { type Pending, settleAll } from '../base/async.ts';
import { BlockError, errnoOf } from '../base/errors.ts';
import { defineFilter } from '../core/filter.ts';
import type { BlockNode, Child } from '../core/node.ts';
import type { IoOptions, StoreSupports, TruncateOptions, WriteOptions, ZeroOptions } from '../core/store.ts';
import { FilterNode } from './filter-node.ts';

/** Zeros are written from a buffer of this size, bytes. */
const ZERO_CHUNK = 1024 * 1024;

class BlkverifyNode extends FilterNode {
  override readonly children: readonly Child[];
  readonly #raw: BlockNode;
  readonly #test: BlockNode;

  constructor(name: string, raw: BlockNode, test: BlockNode) {
    super(name, 'blkverify', test, { name: 'test', role: 'data' });
    this.#raw = raw;
    this.#test = test;
    this.children = [
      { role: 'file', name: 'raw', node: raw },
      { role: 'data', name: 'test', node: test },
    ];
  }

  override get supports(): StoreSupports {
    const { write, truncate, extents } = this.#test.supports;
    const raw = this.#raw.supports;
    return {
      write: write && raw.write,
      truncate: truncate && raw.truncate,
      writeZeroes: 'emulated',
      discard: false,
      extents,
      fua: false,
      sync: false,
      access: 'random',
    };
  }

  protected override async _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Promise<void> {
    const expected = new Uint8Array(into.length);
    await this.#both('read', offset, into.length, [
      () => this.#test.read(offset, into, options),
      () => this.#raw.read(offset, expected, options),
    ]);
    const at = firstDifference(into, expected);
    if (at >= 0) throw this.#mismatch('read', offset, into.length, `contents mismatch at offset ${offset + at}`);
  }

  protected override _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.#both('write', offset, from.length, [
      () => this.#test.write(offset, from, options),
      () => this.#raw.write(offset, from, options),
    ]);
  }

  protected override async _writeZeroes(
    offset: number,
    length: number,
    options: ZeroOptions | undefined,
  ): Promise<void> {
    if (options?.fastOnly === true) {
      throw new BlockError('UNSUPPORTED', `blkverify "${this.name}": cannot zero without writing`, {
        reason: 'blkverify.fast-zero',
      });
    }
    const zeros = new Uint8Array(Math.min(length, ZERO_CHUNK));
    for (let at = 0; at < length; at += zeros.length) {
      await this._write(offset + at, zeros.subarray(0, Math.min(zeros.length, length - at)), options);
    }
  }

  protected override async _discard(): Promise<void> {}

  /** The test one only: the raw one is of no importance afterwards. */
  protected override _flush(options: IoOptions | undefined): Pending {
    return this.#test.flush(options);
  }

  protected override async _truncate(size: number, options: TruncateOptions | undefined): Promise<void> {
    await this.#test.truncate(size, options);
    await this.#raw.truncate(size, options);
  }

  /** Both must fail, or none. */
  async #both(kind: 'read' | 'write', offset: number, length: number, requests: (() => Pending)[]): Promise<void> {
    const failures: unknown[] = [undefined, undefined];
    const run = async (request: () => Pending, nth: number): Promise<void> => {
      try {
        await request();
      } catch (error) {
        failures[nth] = error;
      }
    };
    await settleAll(requests.map(run));
    const [test, raw] = failures;
    if (test === undefined && raw === undefined) return;
    if (test !== undefined && raw !== undefined && errnoOf(test) === errnoOf(raw)) throw test;
    const text = (error: unknown): string => (error === undefined ? 'success' : errnoOf(error));
    throw this.#mismatch(kind, offset, length, `return value mismatch ${text(test)} != ${text(raw)}`, test ?? raw);
  }

  #mismatch(kind: string, offset: number, length: number, what: string, cause?: unknown): BlockError {
    const sentence = `${kind} offset=${offset} bytes=${length} ${what}`;
    return new BlockError('IO', `blkverify "${this.name}": ${sentence}`, {
      reason: 'blkverify.mismatch',
      details: { kind, offset, length, sentence, errno: 'EIO' },
      cause,
    });
  }
}

function firstDifference(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return i;
  return -1;
}

export const blkverify = defineFilter({
  name: 'blkverify',
  summary: 'compares what is read with a raw copy, for tests',
  children: [
    { name: 'test', role: 'data', probed: 'always' },
    { name: 'raw', role: 'file', probed: 'as-filter' },
  ],
  openOptions: {},
  listOptions: {},

  parseName(rest) {
    const colon = rest.indexOf(':');
    if (colon < 0) {
      throw new BlockError('INVALID_ARGUMENT', `"blkverify:${rest}": write blkverify:RAWCOPY:IMAGE`, {
        reason: 'blkverify.name',
        details: { name: rest },
      });
    }
    return { 'raw.filename': rest.slice(0, colon), 'test.filename': rest.slice(colon + 1) };
  },

  shortName(options, child) {
    const raw = child('raw');
    const test = child('test');
    if (options.size > 0 || raw === undefined || test === undefined || raw.includes(':')) return undefined;
    return `blkverify:${raw}:${test}`;
  },

  open(context) {
    const [raw] = context.children('raw') as [BlockNode];
    const [test] = context.children('test') as [BlockNode];
    return Promise.resolve(new BlkverifyNode(context.name, raw, test));
  },
});
