/** A hash of what a guest would read: the same for the same disk, whatever its format, allocation or layers. Owns the walk over the disk and the
 *  order in which hashes of blocks, made on every core, come into the tree.
 *  Spec: docs/guide/checksums.md, version 1.
 *  Invariants: memory is bounded by the buffers; ranges that are known to be zero are not read; at the end everything begun has ended. */
import { type JobOptions, Pacer, throwIfAborted } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { setU64 } from '../bytes/ints.ts';
import type { Codecs } from '../codec/codecs.ts';
import { createCodecs } from '../codec/create.ts';
import { BufferPool } from '../core/buffer-pool.ts';
import { Copier } from '../core/copier.ts';
import { platformCrypto } from '../crypto/runtime.ts';
import type { Image } from '../image/image.ts';
import { type Digest, HashTree, PREFIX } from './hash-tree.ts';
import { LayerPlaces } from './shared-places.ts';
import { StatusCursor } from './status-cursor.ts';

export interface ChecksumOptions extends JobOptions {
  /** Hashes on worker threads; in this thread when not given. */
  readonly codecs?: Codecs | undefined;
}

export interface Checksum {
  readonly algorithm: 'cowdisk-1-sha256';
  /** 64 hexadecimal digits. */
  readonly hash: string;
  /** Bytes of the disk. */
  readonly virtualSize: number;
  /** Bytes that were read; the others were known to be zero. */
  readonly read: number;
}

/** Bytes of a block: part of the definition, as every number in {@link PREFIX}. */
export const CHECKSUM_BLOCK = 1 * MiB;
const HASH_BYTES = 32;
/** Stretches of files that workers read and hash by themselves, for each of them at once. */
const DIRECT_EACH = 2;
/** Bytes of one request. */
const CHUNK = 4 * CHECKSUM_BLOCK;
const BUFFERS = 8;

/** Computes the checksum of an open image.
 *  @throws {@link BlockError} whatever reading fails with; ABORTED. */
export async function checksumImage(image: Image, options: ChecksumOptions = {}): Promise<Checksum> {
  const walk = new Walk(image, options.codecs ?? createCodecs({ workers: 0 }), options);
  return await walk.run();
}

const digest: Digest = (parts) => platformCrypto.digest('sha256', parts);

/** Hashes that are to come next, in the order of the disk: some blocks' when they are there, or so many blocks of zeros. */
interface Turn {
  hashes: Uint8Array | undefined;
  readonly zeros: number;
}

class Walk {
  readonly #image: Image;
  readonly #codecs: Codecs;
  readonly #options: ChecksumOptions;
  readonly #tree = new HashTree(digest, digest([Uint8Array.of(PREFIX.block), new Uint8Array(CHECKSUM_BLOCK)]));
  readonly #turns: Turn[] = [];
  /** Turns of the requests that run, by offset. */
  readonly #running = new Map<number, Turn>();
  readonly #copier: Copier;
  readonly #pacer = new Pacer();
  readonly #direct: DirectHashes;
  #places: LayerPlaces | undefined;
  /** What no worker could read: it is read once more on the usual way, where errors are told. */
  readonly #again: { readonly start: number; readonly length: number; readonly turn: Turn }[] = [];
  #read = 0;

  constructor(image: Image, codecs: Codecs, options: ChecksumOptions) {
    this.#image = image;
    this.#codecs = codecs;
    this.#options = options;
    this.#direct = new DirectHashes(codecs);
    this.#copier = new Copier({
      buffers: new BufferPool({ size: CHUNK, count: BUFFERS, shared: codecs.workers > 0 }),
      order: 'free',
      read: (offset, into) => this.#fill(offset, into),
      write: (offset, from) => this.#hash(offset, from),
      signal: options.signal,
    });
  }

  async run(): Promise<Checksum> {
    const { virtualSize } = this.#image;
    // What is being written may move while a thread reads it.
    if (this.#image.readOnly) this.#places = await LayerPlaces.of(this.#image.node);
    let failure: { readonly error: unknown } | undefined;
    try {
      await this.#blocks();
    } catch (error) {
      failure = { error };
    }
    try {
      await this.#direct.finish();
      if (failure === undefined)
        for (const { start, length, turn } of this.#again) await this.#copy(start, length, turn);
    } catch (error) {
      failure ??= { error };
    }
    try {
      await this.#copier.finish();
    } catch (error) {
      failure ??= { error };
    }
    if (failure !== undefined) throw failure.error;
    this.#takeTurns();
    const size = new Uint8Array(8);
    setU64(new DataView(size.buffer), 0, virtualSize);
    const hash = digest([Uint8Array.of(PREFIX.root), size, this.#tree.finish()]);
    return { algorithm: 'cowdisk-1-sha256', hash: toHex(hash), virtualSize, read: this.#read };
  }

  async #blocks(): Promise<void> {
    const { signal, onProgress } = this.#options;
    const { node, virtualSize } = this.#image;
    const cursor = new StatusCursor(node);
    const end = alignUp(virtualSize, CHECKSUM_BLOCK);
    for (let at = 0; at < end; ) {
      throwIfAborted(signal);
      const looking = cursor.seek(at);
      if (looking !== undefined) await looking;
      // What lies past the end of the disk is zeros, too.
      const known = cursor.end === virtualSize ? end : cursor.end;
      const zeroEnd = cursor.zero ? alignDown(known, CHECKSUM_BLOCK) : at;
      if (zeroEnd > at) {
        this.#turns.push({ hashes: undefined, zeros: (zeroEnd - at) / CHECKSUM_BLOCK });
        at = zeroEnd;
      } else {
        const dataEnd = cursor.zero ? at + CHECKSUM_BLOCK : alignUp(known, CHECKSUM_BLOCK);
        at = await this.#data(at, Math.min(dataEnd, at + CHUNK), cursor);
      }
      this.#takeTurns();
      onProgress?.({ phase: 'checksum', done: Math.min(at, virtualSize), total: virtualSize });
      if (this.#pacer.due) await this.#pacer.pause(signal);
    }
  }

  async #data(start: number, end: number, cursor: StatusCursor): Promise<number> {
    const turn: Turn = { hashes: undefined, zeros: 0 };
    this.#turns.push(turn);
    const place = this.#direct.ready ? await this.#placeOf(start, Math.min(end, cursor.end), cursor.depth) : undefined;
    if (place !== undefined) {
      const taken = await this.#direct.take(place, (hashes) => {
        if (hashes === undefined) this.#again.push({ start, length: place.length, turn });
        else this.#read += place.length;
        turn.hashes = hashes;
      });
      if (taken) return start + place.length;
    }
    await this.#copy(start, end - start, turn);
    return end;
  }

  async #copy(start: number, length: number, turn: Turn): Promise<void> {
    this.#running.set(start, turn);
    const waiting = this.#copier.copy(start, length);
    if (waiting !== undefined) await waiting;
  }

  /** Where whole blocks from `start` on lie in an open file, if they do.
   *  @param end how far the layer at `depth` decides at most: its runs go on below what the layers above hold */
  async #placeOf(start: number, end: number, depth: number): Promise<Place | undefined> {
    const layer = this.#places?.layer(depth);
    if (layer === undefined || layer.node.format.transform !== undefined) return undefined;
    const seeking = layer.seek(start);
    if (seeking !== undefined) await seeking;
    const { kind, guestOffset, length, hostOffset, child } = layer.run;
    const descriptor = layer.node.children[child]?.node.descriptor;
    if (kind !== 'data' || descriptor === undefined) return undefined;
    const inside = Math.min(end, guestOffset + length, this.#image.virtualSize) - start;
    const whole = alignDown(inside, CHECKSUM_BLOCK);
    return whole === 0 ? undefined : { descriptor, offset: hostOffset + start - guestOffset, length: whole };
  }

  #fill(offset: number, into: Uint8Array): Promise<void> | undefined {
    const inside = Math.min(into.length, this.#image.virtualSize - offset);
    this.#read += inside;
    if (inside < into.length) into.fill(0, inside);
    return this.#image.node.read(offset, inside < into.length ? into.subarray(0, inside) : into, { thread: 'pool' });
  }

  async #hash(offset: number, from: Uint8Array): Promise<void> {
    const hashes = await this.#codecs.digests(from, CHECKSUM_BLOCK, PREFIX.block);
    (this.#running.get(offset) as Turn).hashes = hashes;
    this.#running.delete(offset);
  }

  /** Takes what is there into the tree, up to the first that is not. */
  #takeTurns(): void {
    let taken = 0;
    for (const { hashes, zeros } of this.#turns) {
      if (zeros > 0) this.#tree.addZeros(zeros);
      else if (hashes === undefined) break;
      else for (let at = 0; at < hashes.length; at += HASH_BYTES) this.#tree.add(hashes.subarray(at, at + HASH_BYTES));
      taken++;
    }
    this.#turns.splice(0, taken);
  }
}

interface Place {
  readonly descriptor: number;
  /** Bytes. */
  readonly offset: number;
  readonly length: number;
}

/** What the workers read and hash without this thread. */
class DirectHashes {
  readonly #codecs: Codecs;
  #running = 0;
  #wake: (() => void) | undefined;

  constructor(codecs: Codecs) {
    this.#codecs = codecs;
  }

  get ready(): boolean {
    return this.#codecs.workers > 0;
  }

  /** Waits until there is room, and begins.
   *  @param done told the hashes, or that they could not be made
   *  @returns false when the workers do not take it. */
  async take({ descriptor, offset, length }: Place, done: (hashes: Uint8Array | undefined) => void): Promise<boolean> {
    await this.#until(this.#codecs.workers * DIRECT_EACH - 1);
    const hashing = this.#codecs.digestsOfFile(descriptor, offset, length, CHECKSUM_BLOCK, PREFIX.block);
    if (hashing === undefined) return false;
    this.#running++;
    hashing
      .then(done, () => done(undefined))
      .finally(() => {
        this.#running--;
        this.#wake?.();
      });
    return true;
  }

  /** Everything begun has ended. */
  async finish(): Promise<void> {
    await this.#until(0);
  }

  async #until(running: number): Promise<void> {
    while (this.#running > running) {
      await new Promise<void>((wake) => {
        this.#wake = wake;
      });
    }
  }
}

/** A hash as it is printed. */
export function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** @param hash what {@link toHex} made. */
export function fromHex(hash: string): Uint8Array {
  return Uint8Array.from({ length: hash.length / 2 }, (_, i) => Number.parseInt(hash.slice(i * 2, i * 2 + 2), 16));
}
