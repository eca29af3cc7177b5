/** Block and character devices as a store (Node). Owns finding a device's size and the sector rules of its discard and zero
 *  requests; the transfers are FdIo's.
 *  Invariants: the size never changes; native discard and zero requests cover whole logical sectors, what is left over at
 *  the edges is written (zeroes) or left alone (discard). */
import { type BigIntStats, fstatSync, readFileSync, readSync } from 'node:fs';
import type { Pending } from '../base/async.ts';
import { BlockError, fromSystemError, hex } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { EXTENT, type ExtentList } from '../core/extent.ts';
import {
  BaseStore,
  DEFAULT_LIMITS,
  type IoOptions,
  type StoreLimits,
  type StoreStatus,
  type StoreSupports,
  type WriteOptions,
  type ZeroOptions,
} from '../core/store.ts';
import { type Native, type NativeOutcome, NOT_AVAILABLE, native } from '../platform/node/native.ts';
import { FdIo } from './fd-io.ts';
import { FileLocks } from './file-locks.ts';

/** Native requests longer than this run in the pool, bytes: a device may really write what it zeroes. */
const NATIVE_SYNC_LIMIT = 1024 * 1024;
const SECTOR = 512;

export interface BlockDeviceOptions {
  readonly name: string;
  readonly readOnly: boolean;
  /** Of this `fd`; made here when not given. */
  readonly locks?: FileLocks | undefined;
  /** Where the native calls come from; the platform's by default. */
  readonly native?: Native;
  /** Bytes; found by asking the system where it is not given. */
  readonly size?: number;
  /** A character device: nothing to flush, no sectors to discard. */
  readonly character?: boolean;
}

export class BlockDeviceStore extends BaseStore {
  readonly size: number;
  readonly limits: StoreLimits;
  readonly supports: StoreSupports;
  readonly locks: FileLocks;
  readonly #io: FdIo;
  readonly #native: Native;
  readonly #sector: number;
  readonly #character: boolean;
  readonly #missing = new Set<'discard' | 'punch' | 'zero'>();

  /** Takes over `fd`, an open device.
   *  @throws {@link BlockError} where the size cannot be found. */
  constructor(fd: number, options: BlockDeviceOptions) {
    super(options.name, 'host_device');
    this.#io = new FdIo(fd, options.name);
    this.#native = options.native ?? native();
    this.locks = options.locks ?? new FileLocks(fd, { name: options.name, native: () => this.#native });
    this.#character = options.character === true;
    this.size = options.size ?? deviceSize(fd, options.name, this.#character, this.#native);
    const sector = this.#native.deviceSectorSize(fd);
    this.#sector = sector === NOT_AVAILABLE || sector < SECTOR ? SECTOR : sector;
    const write = !options.readOnly;
    const fast = write && this.#native.available && !this.#character;
    const missing = this.#missing;
    this.limits = { ...DEFAULT_LIMITS, zeroAlign: this.#sector, discardAlign: this.#sector };
    this.supports = {
      write,
      truncate: false,
      get writeZeroes() {
        if (!write) return 'no';
        return fast && !(missing.has('punch') && missing.has('zero')) ? 'fast' : 'emulated';
      },
      get discard() {
        return fast && !missing.has('discard');
      },
      extents: false,
      fua: write,
      sync: false,
      access: 'random',
    };
  }

  status(): Promise<StoreStatus> {
    return this.#io.run(async () => {
      if (this.closed) throw new BlockError('CLOSED', `"${this.name}": status after close`);
      const stat = fstatSync(this.#io.fd, { bigint: true });
      return {
        allocatedBytes: Number(stat.blocks * 512n),
        modifiedSeconds: Number(stat.mtimeNs / 1_000_000_000n),
        identity: deviceIdentity(stat),
      };
    });
  }

  writev(offset: number, parts: readonly Uint8Array[], options?: WriteOptions): Pending {
    let total = 0;
    for (const part of parts) total += part.length;
    this.checkWrite('write', offset, total);
    if (total === 0) return undefined;
    return this.#thenFlush(this.#io.writev(offset, parts, total, options), options);
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    return this.#io.read(offset, into, options);
  }

  protected _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.#thenFlush(this.#io.write(offset, from, options), options);
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    const start = Math.min(alignUp(offset, this.#sector), offset + length);
    const end = Math.max(alignDown(offset + length, this.#sector), start);
    const fast = this.supports.writeZeroes === 'fast' && end > start;
    if (!fast && options?.fastOnly === true && length >= this.#sector) throw this.#tooSlow(offset, length);
    if (!fast) return this.#thenFlush(this.#io.writeZeros(offset, length, options?.signal), options);
    return this.#zero(offset, start, end, offset + length, options);
  }

  protected _discard(offset: number, length: number, options: IoOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    const start = alignUp(offset, this.#sector);
    const end = alignDown(offset + length, this.#sector);
    if (end <= start) return undefined;
    if (end - start > NATIVE_SYNC_LIMIT) return this.#discardLater(start, end - start);
    try {
      this.#note('discard', this.#native.discardDevice(this.#io.fd, start, end - start));
    } catch (error) {
      throw this.#io.failure(error, 'discard', start, end - start);
    }
    return undefined;
  }

  protected _extents(offset: number, length: number, into: ExtentList): Pending {
    const end = Math.min(offset + length, this.size);
    if (end > offset && !into.add(end - offset, EXTENT.present + EXTENT.data, offset, this.name)) return undefined;
    const past = Math.max(offset, end);
    if (past < offset + length) into.add(offset + length - past, EXTENT.present + EXTENT.zero);
    return undefined;
  }

  protected _flush(options: IoOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    // fdatasync of a character device is EINVAL: nothing is behind it
    return this.#character ? undefined : this.#io.flush();
  }

  protected _truncate(): Pending {
    throw new BlockError('INTERNAL', `"${this.name}": truncate of a device`);
  }

  protected _close(): Promise<void> {
    return this.#io.close(() => this.locks.release());
  }

  #thenFlush(pending: Pending, options: WriteOptions | undefined): Pending {
    if (options?.fua !== true || this.#character) return pending;
    return this.#flushAfter(pending);
  }

  async #flushAfter(pending: Pending): Promise<void> {
    if (pending !== undefined) await pending;
    await this.#io.flush();
  }

  async #zero(
    offset: number,
    start: number,
    end: number,
    stop: number,
    options: ZeroOptions | undefined,
  ): Promise<void> {
    const done = await this.#zeroSectors(start, end - start, options);
    const signal = options?.signal;
    if (!done) await this.#io.writeZeros(offset, stop - offset, signal);
    else {
      if (start > offset) await this.#io.writeZeros(offset, start - offset, signal);
      if (stop > end) await this.#io.writeZeros(end, stop - end, signal);
    }
    if (options?.fua === true) await this.#io.flush();
  }

  /** Zeroes whole sectors. BLKZEROOUT may write zeros one by one, so only a punch is known to be fast; it gives space back,
   *  and so does for nobody who did not allow it.
   *  @returns false where the device can do neither. */
  async #zeroSectors(start: number, length: number, options: ZeroOptions | undefined): Promise<boolean> {
    const later = this.#native.later;
    const fd = this.#io.fd;
    try {
      if (options?.unmap === true && !this.#missing.has('punch')) {
        const punched = await this.#io.run(() => later.punchHole(fd, start, length));
        if (this.#note('punch', punched)) return true;
      }
      if (options?.fastOnly === true) throw this.#tooSlow(start, length);
      if (this.#missing.has('zero')) return false;
      return this.#note('zero', await this.#io.run(() => later.zeroDevice(fd, start, length)));
    } catch (error) {
      throw this.#io.failure(error, 'zero', start, length);
    }
  }

  async #discardLater(start: number, length: number): Promise<void> {
    try {
      this.#note('discard', await this.#io.run(() => this.#native.later.discardDevice(this.#io.fd, start, length)));
    } catch (error) {
      throw this.#io.failure(error, 'discard', start, length);
    }
  }

  #note(what: 'discard' | 'punch' | 'zero', outcome: NativeOutcome): boolean {
    if (outcome === 'done') return true;
    this.#missing.add(what);
    return false;
  }

  #tooSlow(offset: number, length: number): BlockError {
    return new BlockError('UNSUPPORTED', `"${this.name}": no fast way to zero ${hex(length)} bytes at ${hex(offset)}`, {
      reason: 'store.zeroes-slow',
      details: { offset, length },
    });
  }
}

/** Two nodes of one device are one thing. */
export function deviceIdentity(stat: BigIntStats): string {
  return `device:${stat.rdev}`;
}

function deviceSize(fd: number, name: string, character: boolean, calls: Native): number {
  const asked = calls.deviceSize(fd);
  if (asked !== NOT_AVAILABLE) return asked;
  // /dev/null, /dev/zero: no size, as lseek says of them
  if (character) return 0;
  const known = sizeFromSysfs(fstatSync(fd, { bigint: true }).rdev);
  if (known !== undefined) return known;
  const sector = new Uint8Array(SECTOR);
  try {
    return probeSize((offset) => readSync(fd, sector, 0, SECTOR, offset) === SECTOR);
  } catch (error) {
    throw fromSystemError(error, `could not find the size of "${name}"`, { name });
  }
}

/** Size of a Linux block device by its number, without opening it; `undefined` where the system does not say. */
export function sizeFromSysfs(rdev: bigint, root = '/sys/dev/block'): number | undefined {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & ~0xffn);
  let text: string;
  try {
    text = readFileSync(`${root}/${major}:${minor}/size`, 'utf8');
  } catch {
    return undefined; // not Linux, or no sysfs here: the caller has another way
  }
  const sectors = Number(text.trim());
  return Number.isSafeInteger(sectors * SECTOR) && text.trim() !== '' ? sectors * SECTOR : undefined;
}

/** Finds the size by reading: doubles until a sector cannot be read, then halves.
 *  @param readable whether the whole sector at the offset is there. */
export function probeSize(readable: (offset: number) => boolean): number {
  if (!readable(0)) return 0;
  let inside = 0; // a sector that is there
  let outside = SECTOR; // one that is not, once the first loop has ended
  while (outside < Number.MAX_SAFE_INTEGER && readable(outside)) {
    inside = outside;
    outside *= 2;
  }
  while (outside - inside > SECTOR) {
    const middle = alignDown((inside + outside) / 2, SECTOR);
    if (readable(middle)) inside = middle;
    else outside = middle;
  }
  return inside + SECTOR;
}
