/** What every hostile image must survive: open, info, map, bitmaps, read all, check; then a write, a repair, and another look; its snapshots opened, and
 *  one made, applied and deleted.
 *  The result of each step is right data or a BlockError; anything else is told as a failure. What is demanded besides:
 *  - a read-only open asks for no write;
 *  - what was written is read back, and an image that check calls right keeps all its other bytes, and stays right;
 *  - what a repair calls repaired passes the next check;
 *  - snapshots made, applied and deleted leave disk and check as they were, where check called the image right. */
import { isBlockError } from '../../src/base/errors.ts';
import { isZero } from '../../src/bytes/zeros.ts';
import type { Codecs } from '../../src/codec/codecs.ts';
import type { CheckFinding, CheckResult } from '../../src/core/format.ts';
import type { ProtocolDriver } from '../../src/core/protocol.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import type { Image } from '../../src/image/image.ts';
import { type OpenImageOptions, openImage } from '../../src/image/open.ts';
import type { ReferencePolicy } from '../../src/image/references.ts';
import type { MemoryStore } from '../../src/storage/memory.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { imageInfo } from '../../src/tools/info.ts';
import type { Base } from './bases.ts';
import { companions } from './companions.ts';
import { bake, type Recipe } from './mutate.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const PIECE = 256 * KiB;
/** Read whole from the start; of larger disks the end as well. */
const READ_LIMIT = 64 * MiB;
/** Kept to be compared after the write. */
const KEEP_LIMIT = 8 * MiB;

/** Bytes. */
const COLLECT_ABOVE = 56 * 1024 * 1024;

/** What counts is the memory that a case needs, and not what the collector has let pass of the steps before. */
export function collectGarbage(): void {
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  if (heapUsed + arrayBuffers > COLLECT_ABOVE) globalThis.gc?.();
}

/** Snapshots of an image that are looked into. */
const SNAPSHOTS = 3;
/** Mending a snapshot table moves it, after the flags of what it covered were judged. */
const REPAIR_ROUNDS = 3;
/** Refcounts of clusters past the end of the file count as leaks once the file has grown. (And bitmaps do that are void already.) */
const MAY_LEAK = /refcount|^truncated|^garbage|^several|flipped$/;

export interface Outcome {
  /** How each step ended: `ok` or the code and reason of its error. */
  readonly steps: Readonly<Record<string, string>>;
  readonly failures: readonly string[];
}

/** Runs one case. Never throws. */
export async function exercise(recipe: Recipe, bases: ReadonlyMap<string, Base>, codecs: Codecs): Promise<Outcome> {
  const patient = new Patient(recipe, bases, codecs);
  await patient.run();
  return patient;
}

/** Ranges of a bitmap that are looked at: a cluster of bits can have half as many as bits. */
const RANGES = 100_000;

async function readBitmaps(image: Image): Promise<void> {
  for (const { name, inconsistent } of await image.bitmaps()) {
    if (inconsistent) continue;
    let ranges = 0;
    let end = -1;
    for await (const { offset, length } of image.dirtyExtents(name)) {
      if (offset <= end || length <= 0 || offset + length > image.virtualSize) {
        throw new Error(`bitmap ${name}: ${length} bytes at ${offset}`);
      }
      end = offset + length;
      if (++ranges >= RANGES) break;
    }
  }
}

type Pieces = Map<number, Uint8Array>;

class Patient implements Outcome {
  readonly steps: Record<string, string> = {};
  readonly failures: string[] = [];
  readonly #recipe: Recipe;
  readonly #bases: ReadonlyMap<string, Base>;
  readonly #codecs: Codecs;
  readonly #random: () => number;
  readonly #policy: ReferencePolicy;
  /** The files that the image names. */
  #protocol: ProtocolDriver;

  constructor(recipe: Recipe, bases: ReadonlyMap<string, Base>, codecs: Codecs) {
    this.#recipe = recipe;
    this.#bases = bases;
    this.#codecs = codecs;
    this.#random = seededRandom(recipe.exercise);
    const draw = this.#random();
    this.#policy = draw < 0.8 ? 'allow' : draw < 0.95 ? 'layer-only' : 'deny';
    this.#protocol = companions(bases.get(recipe.base) as Base).protocol;
  }

  async run(): Promise<void> {
    const pieces: Pieces = new Map();
    // without a key an encrypted image tells its facts only, and every read of it must be refused
    const metadataOnly = this.#recipe.base === 'luks' || this.#recipe.base === 'keyed';
    await this.#with('open', this.#fresh(), { readOnly: true, metadataOnly }, async (image) => {
      await this.#step('info', () => imageInfo(image, this.#options({})));
      await this.#step('map', () => mapAll(image));
      await this.#step('bitmaps', () => readBitmaps(image));
      await this.#readAll('read', image, pieces);
    });
    const checked = await this.#check('check', this.#fresh());
    await this.#write(pieces, checked);
    await this.#repair();
    collectGarbage();
    await this.#openSnapshots();
    await this.#changeSnapshots(pieces, checked);
  }

  #fresh(): MemoryStore {
    this.#protocol = companions(this.#bases.get(this.#recipe.base) as Base).protocol;
    return bake(this.#recipe, this.#bases);
  }

  #options(options: Partial<OpenImageOptions>): OpenImageOptions {
    return {
      formats: [qcow2, raw],
      protocols: [this.#protocol],
      codecs: this.#codecs,
      format: 'qcow2',
      references: this.#policy,
      ...options,
    };
  }

  /** Runs one step, and judges how it ends. */
  async #step<T>(name: string, body: () => Promise<T>): Promise<T | undefined> {
    try {
      const result = await body();
      this.steps[name] ??= 'ok';
      return result;
    } catch (error) {
      this.#judge(name, error);
      return undefined;
    }
  }

  #judge(name: string, error: unknown): void {
    if (!isBlockError(error)) {
      this.failures.push(`${name}: ${error instanceof Error ? error.stack : String(error)}`);
      return;
    }
    this.steps[name] = `${error.code} ${error.reason}`;
    if (error.code === 'INTERNAL') this.failures.push(`${name}: ${error.stack}`);
    if (error.message === '') this.failures.push(`${name}: an error without a message`);
    // an unopened data file is read-only, whatever the image is
    if (error.code === 'CLOSED' || (error.code === 'READ_ONLY' && this.#policy === 'allow')) {
      this.failures.push(`${name}: ${error.stack}`);
    }
  }

  /** Opens, does something, closes; each a step. */
  async #with(
    name: string,
    store: MemoryStore,
    options: Partial<OpenImageOptions>,
    body: (image: Image) => Promise<void>,
  ): Promise<boolean> {
    const source = options.readOnly === false ? store : await readOnlyCopy(store);
    const image = await this.#step(name, () => openImage(source, this.#options(options)));
    if (image === undefined) return false;
    await body(image);
    await this.#step(`${name} close`, () => image.close());
    return true;
  }

  async #check(name: string, store: MemoryStore): Promise<CheckResult | undefined> {
    let result: CheckResult | undefined;
    await this.#with(`${name} open`, store, { readOnly: true, forCheck: true, openBacking: false }, async (image) => {
      result = await this.#step(name, () => image.check());
    });
    return result;
  }

  async #readAll(name: string, image: Image, into: Pieces): Promise<void> {
    const size = image.virtualSize;
    const end = Math.min(size, READ_LIMIT);
    for (let at = 0; at < end; at += PIECE) await this.#readPiece(name, image, at, Math.min(PIECE, end - at), into);
    if (size > end) {
      const tail = Math.min(MiB, size - end);
      await this.#readPiece(`${name} tail`, image, size - tail, tail, undefined);
    }
  }

  async #readPiece(name: string, image: Image, at: number, length: number, into: Pieces | undefined): Promise<void> {
    const bytes = await this.#step(name, () => image.read(at, length));
    if (bytes !== undefined && at < KEEP_LIMIT) into?.set(at, bytes);
  }

  /** One change, then a look at what it did. */
  async #write(before: Pieces, checked: CheckResult | undefined): Promise<void> {
    const store = this.#fresh();
    const operation = { done: false, kind: '', at: 0, bytes: new Uint8Array(0), unit: 1 };
    let closed = false;
    await this.#with('rw', store, { readOnly: false }, async (image) => {
      this.#choose(image, operation);
      const { kind, at, bytes } = operation;
      const done = await this.#step(kind, async () => {
        if (kind === 'zero') await image.writeZeroes(at, bytes.length, { unmap: this.#random() < 0.5 });
        else if (kind === 'discard') await image.discard(at, bytes.length);
        else await image.write(at, bytes, { compressed: kind === 'compressed' });
        return true;
      });
      const flushed = await this.#step('flush', async () => {
        await image.flush();
        return true;
      });
      operation.done = done === true && flushed === true;
    });
    closed = this.steps['rw close'] === 'ok';
    if (!operation.done || !closed) return;
    const sound = checked !== undefined && checked.corruptions === 0 && checked.checkErrors === 0;
    const after: Pieces = new Map();
    const written = await this.#readBack(store, operation, after);
    if (!written) this.failures.push(`${operation.kind} at ${operation.at} did not arrive`);
    if (!sound) return;
    const damaged = changedOutside(before, after, operation);
    if (damaged !== undefined)
      this.failures.push(`${operation.kind} at ${operation.at} changed the byte at ${damaged}`);
    const again = await this.#check('recheck', store.reopen());
    const leaks =
      MAY_LEAK.test(this.#recipe.kind) || this.#recipe.base === 'bitmaps' ? Number.POSITIVE_INFINITY : checked.leaks;
    if (again === undefined || again.corruptions > 0 || again.checkErrors > 0 || again.leaks > leaks) {
      this.failures.push(`${operation.kind} made a sound image fail its check: ${JSON.stringify(again)}`);
    }
  }

  #choose(image: Image, operation: { kind: string; at: number; bytes: Uint8Array; unit: number }): void {
    const random = this.#random;
    const size = image.virtualSize;
    const unit = image.node.limits.discardAlign;
    const kinds = ['write', 'write', 'write', 'zero', 'discard', 'compressed'];
    operation.kind = kinds[below(random, kinds.length)] as string;
    operation.unit = unit;
    const reach = Math.min(size, random() < 0.9 ? 2 * MiB : Number.MAX_SAFE_INTEGER);
    let at = Math.floor(random() * reach);
    let length = Math.min(1 + below(random, random() < 0.5 ? 3000 : 4 * unit), Math.max(0, size - at));
    if (operation.kind === 'compressed' || operation.kind === 'discard') {
      at -= at % unit;
      length = Math.min(unit, size - at);
    }
    operation.at = at;
    operation.bytes = operation.kind === 'compressed' ? new Uint8Array(length).fill(0xee) : noise(random, length);
  }

  /** @returns whether the bytes written are there (always true for what promises none). */
  async #readBack(
    store: MemoryStore,
    { kind, at, bytes }: { kind: string; at: number; bytes: Uint8Array },
    after: Pieces,
  ): Promise<boolean> {
    let right = true;
    const opened = await this.#with('reopen', store.reopen(), { readOnly: true }, async (image) => {
      if (kind !== 'discard') {
        const back = await this.#step('read back', () => image.read(at, bytes.length));
        right = back !== undefined && (kind === 'zero' ? isZero(back) : Buffer.compare(back, bytes) === 0);
      }
      await this.#readAll('reread', image, after);
    });
    return opened && right;
  }

  async #openSnapshots(): Promise<void> {
    let ids: readonly string[] = [];
    await this.#with('snapshots', this.#fresh(), { readOnly: true, openBacking: false }, async (image) => {
      ids = image.snapshots.slice(0, SNAPSHOTS).map(({ id }) => id);
    });
    for (const id of ids) {
      await this.#with('snapshot', this.#fresh(), { readOnly: true, snapshot: { id } }, async (image) => {
        await this.#step('snapshot map', () => mapAll(image));
        await this.#readAll('snapshot read', image, new Map());
      });
    }
  }

  async #changeSnapshots(before: Pieces, checked: CheckResult | undefined): Promise<void> {
    const store = this.#fresh();
    const after: Pieces = new Map();
    let changed = false;
    await this.#with('snapshots rw', store, { readOnly: false }, async (image) => {
      const first = image.snapshots[0]?.id;
      const made = await this.#step('make', () => image.createSnapshot({ name: 'x', date: new Date(0) }));
      if (made === undefined) return;
      changed = true;
      if (first !== undefined) await this.#step('apply first', () => image.applySnapshot({ id: first }));
      const back = await this.#step('apply', async () => {
        await image.applySnapshot({ id: made.id, name: made.name });
        return true;
      });
      if (back !== true && this.steps['apply first'] === 'ok') changed = false;
      await this.#step('delete', () => image.deleteSnapshot({ id: made.id, name: made.name }));
    });
    const sound = checked !== undefined && checked.corruptions === 0 && checked.checkErrors === 0;
    if (!sound || !changed || this.steps['snapshots rw close'] !== 'ok') return;
    await this.#with('snapshots reopen', store.reopen(), { readOnly: true }, (image) =>
      this.#readAll('snapshots reread', image, after),
    );
    const nowhere = { at: 0, bytes: new Uint8Array(0), kind: 'write', unit: 1 };
    const damaged = changedOutside(before, after, nowhere);
    if (damaged !== undefined) this.failures.push(`snapshots changed the byte at ${damaged}`);
    const again = await this.#check('snapshots recheck', store.reopen());
    if (again === undefined || again.corruptions > 0 || again.checkErrors > 0) {
      this.failures.push(`snapshots made a sound image fail its check: ${JSON.stringify(again)}`);
    }
  }

  /** What a repair calls repaired is sound, at the latest after as many rounds as qemu-img needs for the worst. */
  async #repair(): Promise<void> {
    let store = this.#fresh();
    let result: CheckResult | undefined;
    for (let round = 1; round <= REPAIR_ROUNDS; round++) {
      result = await this.#repairOnce(store);
      if (result === undefined) return;
      store = store.reopen();
      const again = await this.#check('repaired', store);
      store = store.reopen();
      if (again !== undefined && again.corruptions === 0 && again.checkErrors === 0 && again.leaks === 0) return;
    }
    this.failures.push(`repaired ${REPAIR_ROUNDS} times, at last with ${JSON.stringify(result)}, and still not sound`);
  }

  /** @returns what was repaired; `undefined` when something stays broken, and the check says so. */
  async #repairOnce(store: MemoryStore): Promise<CheckResult | undefined> {
    let result: CheckResult | undefined;
    let broken = false;
    const onFinding = ({ reason }: CheckFinding): void => {
      broken ||= reason === 'qcow2.rebuild-failed';
    };
    const options = { readOnly: false, forCheck: true, openBacking: false };
    await this.#with('repair open', store, options, async (image) => {
      result = await this.#step('repair', () => image.check({ fix: 'all', onFinding }));
    });
    const left = result === undefined || result.corruptions > 0 || result.checkErrors > 0 || broken;
    return left || this.steps['repair open close'] !== 'ok' ? undefined : result;
  }
}

export async function readOnlyCopy(store: MemoryStore): Promise<MemoryStore> {
  if (!store.closed) await store.close();
  return store.reopen({ readOnly: true });
}

export async function mapAll(image: Image): Promise<void> {
  let end = 0;
  for await (const { start, length } of image.extents()) {
    if (start !== end || !(length > 0)) throw new Error(`extent of ${length} bytes at ${start}, after ${end}`);
    end = start + length;
  }
  if (end !== image.virtualSize) throw new Error(`extents end at ${end} of ${image.virtualSize}`);
}

/** The first byte that differs outside the units of the operation. */
function changedOutside(
  before: Pieces,
  after: Pieces,
  { at, bytes, kind, unit }: { at: number; bytes: Uint8Array; kind: string; unit: number },
): number | undefined {
  const exact = kind === 'write' || kind === 'zero';
  const start = exact ? at : at - (at % unit);
  const end = exact ? at + bytes.length : Math.ceil((at + bytes.length) / unit) * unit;
  for (const [offset, old] of before) {
    const present = after.get(offset);
    if (present === undefined) return offset;
    if (Buffer.compare(old, present) === 0) continue;
    for (let i = 0; i < old.length; i++) {
      if (old[i] !== present[i] && !(offset + i >= start && offset + i < end)) return offset + i;
    }
  }
  return undefined;
}
