/** An open add-cow image: a FormatNode over the presence map, or over the image file alone where everything is allocated.
 *  Spec: add-cow, v9 and V20; rows, R1 to R10.
 *  Invariants: guest offset = offset in the image file; write order: data → flush of the image file → bits → flush of the add-cow file;
 *  the header changes by `rewrite` alone, one sector at a time. */
import type { MaybePromise, Pending } from '../../base/async.ts';
import { isBlockError } from '../../base/errors.ts';
import type {
  BackingRecord,
  CheckFacet,
  EngineServices,
  FormatInfo,
  FormatNode,
  OpenContext,
  Standalone,
  WritePlan,
} from '../../core/format.ts';
import type { Child } from '../../core/node.ts';
import type { RunList } from '../../core/run.ts';
import type { Preallocation, ZeroOptions } from '../../core/store.ts';
import { AddCowChecker } from './check.ts';
import type { AddCowFiles } from './files.ts';
import { describeAddCow } from './info.ts';
import { fault } from './layout.ts';
import type { AddCowHeader } from './record.ts';
import { resizeDisk } from './resize.ts';
import { rewriteAllAllocated, rewriteBacking } from './rewrite.ts';
import { AddCowState, DATA } from './state.ts';

export class AddCowNode implements FormatNode {
  readonly format = 'add-cow';
  readonly unit: number;
  /** What is allocated may be a hole in the image file. */
  readonly recurse = 'zero';
  readonly readOnly: boolean;
  readonly children: readonly Child[];
  readonly check: CheckFacet;
  readonly #state: AddCowState;

  constructor(context: OpenContext, header: AddCowHeader, files: AddCowFiles) {
    const state = new AddCowState(context, header, files);
    this.#state = state;
    this.unit = header.clusterSize;
    this.readOnly = context.readOnly;
    this.check = new AddCowChecker(state);
    const { file, data, backing } = state;
    this.children = [
      { role: 'file', name: 'file', node: file },
      { role: 'data', name: 'image-file', node: data },
      ...(backing === undefined ? [] : [{ role: 'backing', name: 'backing', node: backing } as const]),
    ];
  }

  get virtualSize(): number {
    return this.#state.virtualSize;
  }

  /** The image file alone zeroes bytes. */
  get zeroUnit(): number {
    return this.#state.map === undefined ? 1 : this.unit;
  }

  attach(engine: EngineServices): void {
    this.#state.engine = engine;
  }

  // ── mapping and writing ──────────────────────────────────────────────────────────────────────

  map(offset: number, length: number, into: RunList): Pending {
    const { map } = this.#state;
    if (map !== undefined) return map.map(offset, length, into);
    into.push('data', length, DATA, offset, !this.readOnly);
    return undefined;
  }

  prepareWrite(offset: number, length: number): MaybePromise<WritePlan> {
    const { map } = this.#state;
    if (map !== undefined) return map.prepareWrite(offset, length);
    return { guestOffset: offset, length, child: DATA, hostOffset: offset, headLength: 0, tailLength: 0 };
  }

  commitWrite(plan: WritePlan): Pending {
    return this.#state.map?.commitWrite(plan);
  }

  abortWrite(plan: WritePlan): Pending {
    return this.#state.map?.abortWrite(plan);
  }

  mapZeroes(offset: number, length: number, options: ZeroOptions): MaybePromise<'done'> {
    const { map, data } = this.#state;
    if (map !== undefined) return map.zero(offset, length, options);
    const pending = data.writeZeroes(offset, length, options);
    return pending === undefined ? 'done' : done(pending);
  }

  unmap(offset: number, length: number, reveal: 'zero' | 'backing'): Promise<'done' | 'unsupported'> {
    const { map } = this.#state;
    if (map !== undefined) return map.unmap(offset, length, reveal);
    return reveal === 'zero' ? this.#punch(offset, length) : Promise.resolve('unsupported');
  }

  /** What is discarded must read as zero, so only a file that can do that cheaply does it. */
  async #punch(offset: number, length: number): Promise<'done' | 'unsupported'> {
    const { data, virtualSize } = this.#state;
    try {
      await data.writeZeroes(offset, Math.min(length, virtualSize - offset), { unmap: true, fastOnly: true });
      return 'done';
    } catch (error) {
      if (isBlockError(error) && error.code === 'UNSUPPORTED') return 'unsupported';
      throw error;
    }
  }

  // ── the image as a whole ─────────────────────────────────────────────────────────────────────

  resize(virtualSize: number, preallocation: Preallocation | 'metadata'): Promise<void> {
    return resizeDisk(this.#state, virtualSize, preallocation);
  }

  async changeBacking(backing: BackingRecord | undefined): Promise<void> {
    const state = this.#state;
    state.header = await rewriteBacking(state.file, state.header, backing, state.name);
  }

  /** Clears the bitmap, and gives the space back where the image file can. */
  async makeEmpty(): Promise<void> {
    const { map, data, name } = this.#state;
    if (map === undefined) {
      throw fault(
        name,
        'empty-all-allocated',
        'says that everything is allocated: it has no clusters to drop, and no backing file that could show',
        {},
        'UNSUPPORTED',
      );
    }
    await map.clear();
    await data.discard(0, data.size);
  }

  /** @returns the image file, by the name it was opened with. */
  async detach(): Promise<Standalone> {
    const state = this.#state;
    const { map, data, header, name } = state;
    if (map !== undefined) {
      await map.flush();
      const missing = await map.missing();
      if (missing > 0) {
        throw fault(
          name,
          'not-all',
          `${missing} bytes are not in the image file "${header.image.text}", which cannot stand alone without them`,
          { missing, size: state.virtualSize },
          'INVALID_ARGUMENT',
        );
      }
      if (header.version === 'v20') {
        state.header = await rewriteAllAllocated(state.file, header);
        await map.close();
        state.map = undefined;
      }
    }
    return { name: data.name, format: header.imageFormat };
  }

  info(): Promise<FormatInfo> {
    return describeAddCow(this.#state);
  }

  // ── life cycle ───────────────────────────────────────────────────────────────────────────────

  flush(): Pending {
    if (this.readOnly) return undefined;
    const { map, data } = this.#state;
    return map === undefined ? data.flush() : map.flush();
  }

  async close(): Promise<void> {
    const { map, data } = this.#state;
    if (this.readOnly) return;
    if (map === undefined) await data.flush();
    else await map.close();
  }
}

async function done(pending: Promise<void>): Promise<'done'> {
  await pending;
  return 'done';
}
