/** The only door to native calls: holes, punching, zero ranges, allocation, block-device ioctls, locks. Works through koffi, an
 *  optional dependency that is loaded at the first call of `native()` and never at import (it costs 8 ms).
 *  Invariants: nothing here throws because koffi, a symbol or a kernel feature is missing: such a call answers
 *  `'not available'` and the caller has another way. A real failure (ENOSPC, EIO) throws an Error whose `code` is the errno.
 *  COWDISK_NO_NATIVE=1 switches every call off; it is read at each `native()`, so tests can turn it on and off. */
import { createRequire } from 'node:module';
import { getSystemErrorName } from 'node:util';

export const NOT_AVAILABLE = 'not available';
export type NotAvailable = typeof NOT_AVAILABLE;
export type NativeOutcome = 'done' | NotAvailable;

/** Calls on a range of an open file. `fd`: a file descriptor; offsets and lengths in bytes, up to 2^53-1. */
export interface RangeCalls<Result> {
  /** Frees the blocks of the range; it reads as zero; the file keeps its size. On block devices: zeroes it fast or not at all. */
  punchHole(fd: number, offset: number, length: number): Result;
  /** Zeroes the range without transferring zeros and keeps space allocated; the file keeps its size. */
  zeroRange(fd: number, offset: number, length: number): Result;
  /** Allocates the range's missing blocks; the file grows to its end where it is shorter. Content is unchanged. */
  allocate(fd: number, offset: number, length: number): Result;
  /** BLKDISCARD: the content becomes undefined. Whole logical sectors of a block device. */
  discardDevice(fd: number, offset: number, length: number): Result;
  /** BLKZEROOUT: the range reads as zero; the kernel may transfer zeros. Whole logical sectors of a block device. */
  zeroDevice(fd: number, offset: number, length: number): Result;
}

export interface Native extends RangeCalls<NativeOutcome> {
  /** Whether there are native calls at all; single ones may still be missing. */
  readonly available: boolean;
  /** Why there are none, for people; `undefined` when there are. */
  readonly missing: string | undefined;
  /** First offset at or after `offset` that holds data; -1 when there is none up to the end of the file. */
  seekData(fd: number, offset: number): number | NotAvailable;
  /** First offset at or after `offset` in a hole (the end of the file is one); -1 when `offset` is not inside the file. */
  seekHole(fd: number, offset: number): number | NotAvailable;
  /** Size of a block device, bytes. */
  deviceSize(fd: number): number | NotAvailable;
  /** Logical sector size of a block device, bytes. */
  deviceSectorSize(fd: number): number | NotAvailable;
  /** Takes or gives back a read lock of the open file (OFD) on one byte. `taken`: somebody has a write lock there. */
  lockByte(fd: number, at: number, locked: boolean): 'done' | 'taken' | NotAvailable;
  /** Whether another opening of the file has a lock of any kind on the byte. */
  byteIsLocked(fd: number, at: number): boolean | NotAvailable;
  /** The range calls on the thread pool, for ranges that take long. */
  readonly later: RangeCalls<Promise<NativeOutcome>>;
}

/** A platform without native calls. */
export function withoutNative(missing: string): Native {
  const no = (): NotAvailable => NOT_AVAILABLE;
  const noLater = (): Promise<NativeOutcome> => Promise.resolve(NOT_AVAILABLE);
  return {
    available: false,
    missing,
    seekData: no,
    seekHole: no,
    deviceSize: no,
    deviceSectorSize: no,
    lockByte: no,
    byteIsLocked: no,
    punchHole: no,
    zeroRange: no,
    allocate: no,
    discardDevice: no,
    zeroDevice: no,
    later: {
      punchHole: noLater,
      zeroRange: noLater,
      allocate: noLater,
      discardDevice: noLater,
      zeroDevice: noLater,
    },
  };
}

let loaded: Native | undefined;

/** The native calls of this platform, loaded at the first use. */
export function native(): Native {
  if (process.env['COWDISK_NO_NATIVE'] === '1') return withoutNative('switched off by COWDISK_NO_NATIVE=1');
  loaded ??= load();
  return loaded;
}

/** The part of koffi this file uses. */
interface NativeFunction {
  (...args: unknown[]): number | bigint;
  async(...args: unknown[]): void;
}
interface Koffi {
  load(path: null): { func(name: string, result: string, args: readonly string[]): NativeFunction };
  errno(value?: number): number;
}

function load(): Native {
  if (process.platform === 'win32') return withoutNative('not written for Windows');
  const require = createRequire(import.meta.url);
  try {
    // koffi's own loader takes as long as all that it loads: where its binary can be had directly, it is
    const binary = require(`@koromix/koffi-${process.platform}-${process.arch}`) as Partial<Koffi>;
    if (typeof binary.load === 'function' && typeof binary.errno === 'function') return new Calls(binary as Koffi);
  } catch {
    // another layout of packages, or none of this platform: koffi knows, or says what is missing
  }
  try {
    return new Calls(require('koffi') as Koffi);
  } catch (error) {
    return withoutNative(`koffi: ${error instanceof Error ? error.message : String(error)}`);
  }
}

const FALLOC_KEEP_SIZE = 0x01;
const FALLOC_PUNCH_HOLE = 0x02;
const FALLOC_ZERO_RANGE = 0x10;

/** SEEK_DATA and SEEK_HOLE by platform. */
const SEEKS: Readonly<Record<string, { readonly data: number; readonly hole: number }>> = {
  linux: { data: 3, hole: 4 },
  android: { data: 3, hole: 4 },
  darwin: { data: 4, hole: 3 },
  freebsd: { data: 3, hole: 4 },
};

interface DeviceRequests {
  readonly size64: number;
  readonly sectorSize: number;
  readonly discard: number;
  readonly zeroOut: number;
}

/** Numbers of Linux' ioctls. The request number holds the direction, whose bits differ on some processors, and for
 *  BLKGETSIZE64 the size of a size_t, though the answer has 64 bits everywhere. */
function linuxRequests(arch: string): DeviceRequests {
  const old = arch === 'mips' || arch === 'mipsel' || arch === 'ppc' || arch === 'ppc64';
  const none = old ? 0x2000_0000 : 0;
  const read = old ? 0x4000_0000 : 0x8000_0000;
  const sizeBytes = arch === 'ia32' || arch === 'arm' || arch === 'mips' || arch === 'mipsel' || arch === 'ppc' ? 4 : 8;
  return {
    size64: read + sizeBytes * 0x1_0000 + 0x1272,
    sectorSize: none + 0x1268,
    discard: none + 0x1277,
    zeroOut: none + 0x127f,
  };
}

/** What a lock request looks like: commands of fcntl, kinds of locks, and where the fields of `struct flock` are. */
interface LockCalls {
  readonly set: number;
  readonly get: number;
  readonly read: number;
  readonly write: number;
  readonly none: number;
  readonly bytes: number;
  readonly type: number;
  readonly start: number;
  readonly length: number;
  /** The structure follows fixed arguments as a variable one, which some calling conventions pass elsewhere. */
  readonly variadic: boolean;
}

/** Locks that belong to the open file, by platform; none where only locks of whole processes are known: those are lost when the process
 *  closes the file anywhere. */
function lockCalls(platform: string, arch: string): LockCalls | undefined {
  if (platform === 'linux' || platform === 'android') {
    // struct flock64: 64-bit fields are aligned to 4 bytes on ia32 alone
    const start = arch === 'ia32' ? 4 : 8;
    const kinds = { read: 0, write: 1, none: 2 };
    return { set: 37, get: 36, ...kinds, bytes: 32, type: 0, start, length: start + 8, variadic: false };
  }
  if (platform === 'darwin') {
    const kinds = { read: 1, write: 3, none: 2 };
    return { set: 90, get: 92, ...kinds, bytes: 24, type: 20, start: 0, length: 8, variadic: true };
  }
  return undefined;
}

/** Errnos by which a kernel or file system says that it has no such locks. */
const NO_LOCKS = new Set(['ENOLCK', 'EINVAL']);

/** Errnos by which a kernel or file system says that it does not have the call, as opposed to failing in it. */
const UNSUPPORTED = new Set(['ENOSYS', 'EOPNOTSUPP', 'ENOTSUP', 'ENOTTY', 'ENODEV']);

const LITTLE_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/** A `struct flock` of one byte, counted from the start of the file (SEEK_SET is 0 everywhere, and so is the process that is not named). */
function lockRequest(calls: LockCalls, kind: number, at: number): DataView {
  const request = new DataView(new ArrayBuffer(calls.bytes));
  request.setInt16(calls.type, kind, LITTLE_ENDIAN);
  request.setBigInt64(calls.start, BigInt(at), LITTLE_ENDIAN);
  request.setBigInt64(calls.length, 1n, LITTLE_ENDIAN);
  return request;
}

type Signature = readonly [name: string, result: string, args: readonly string[]];

class Calls implements Native {
  readonly available = true;
  readonly missing = undefined;
  readonly later: RangeCalls<Promise<NativeOutcome>>;
  readonly #koffi: Koffi;
  readonly #seeks: { readonly data: number; readonly hole: number } | undefined;
  readonly #lseek: NativeFunction | undefined;
  readonly #fallocate: NativeFunction | undefined;
  readonly #ioctl: NativeFunction | undefined;
  readonly #requests: DeviceRequests;
  readonly #fcntl: NativeFunction | undefined;
  readonly #locks: LockCalls | undefined;

  constructor(koffi: Koffi) {
    this.#koffi = koffi;
    const library = koffi.load(null);
    const bind = (...names: readonly Signature[]): NativeFunction | undefined => {
      for (const [name, result, args] of names) {
        try {
          return library.func(name, result, args);
        } catch {
          // the C library does not have this name: the next one, or the caller's other way
        }
      }
      return undefined;
    };
    const linux = process.platform === 'linux' || process.platform === 'android';
    this.#seeks = SEEKS[process.platform];
    // glibc's plain names take 32-bit offsets on 32-bit machines; musl and the BSDs have 64-bit offsets everywhere
    const seekArgs = ['int', 'int64_t', 'int'];
    this.#lseek = bind(['lseek64', 'int64_t', seekArgs], ['lseek', 'int64_t', seekArgs]);
    const fallocateArgs = ['int', 'int', 'int64_t', 'int64_t'];
    this.#fallocate = linux
      ? bind(['fallocate64', 'int', fallocateArgs], ['fallocate', 'int', fallocateArgs])
      : undefined;
    // declared with fixed arguments (koffi runs variadic functions on this thread only): Linux' calling conventions pass both alike
    this.#ioctl = linux ? bind(['ioctl', 'int', ['int', 'unsigned long', 'void *']]) : undefined;
    this.#requests = linuxRequests(process.arch);
    this.#locks = lockCalls(process.platform, process.arch);
    const last = this.#locks?.variadic === true ? '...' : 'void *';
    this.#fcntl = this.#locks === undefined ? undefined : bind(['fcntl', 'int', ['int', 'int', last]]);
    this.later = {
      punchHole: (fd, offset, length) => this.#allocateLater(fd, FALLOC_PUNCH_HOLE + FALLOC_KEEP_SIZE, offset, length),
      zeroRange: (fd, offset, length) => this.#allocateLater(fd, FALLOC_ZERO_RANGE + FALLOC_KEEP_SIZE, offset, length),
      allocate: (fd, offset, length) => this.#allocateLater(fd, 0, offset, length),
      discardDevice: (fd, offset, length) => this.#deviceLater(fd, this.#requests.discard, offset, length),
      zeroDevice: (fd, offset, length) => this.#deviceLater(fd, this.#requests.zeroOut, offset, length),
    };
  }

  seekData(fd: number, offset: number): number | NotAvailable {
    return this.#seek(fd, offset, this.#seeks?.data);
  }

  seekHole(fd: number, offset: number): number | NotAvailable {
    return this.#seek(fd, offset, this.#seeks?.hole);
  }

  punchHole(fd: number, offset: number, length: number): NativeOutcome {
    return this.#allocate(fd, FALLOC_PUNCH_HOLE + FALLOC_KEEP_SIZE, offset, length);
  }

  zeroRange(fd: number, offset: number, length: number): NativeOutcome {
    return this.#allocate(fd, FALLOC_ZERO_RANGE + FALLOC_KEEP_SIZE, offset, length);
  }

  allocate(fd: number, offset: number, length: number): NativeOutcome {
    return this.#allocate(fd, 0, offset, length);
  }

  discardDevice(fd: number, offset: number, length: number): NativeOutcome {
    return this.#device(fd, this.#requests.discard, offset, length);
  }

  zeroDevice(fd: number, offset: number, length: number): NativeOutcome {
    return this.#device(fd, this.#requests.zeroOut, offset, length);
  }

  deviceSize(fd: number): number | NotAvailable {
    const answer = new BigUint64Array(1);
    return this.#ask(fd, this.#requests.size64, answer) === 'done' ? Number(answer[0]) : NOT_AVAILABLE;
  }

  deviceSectorSize(fd: number): number | NotAvailable {
    const answer = new Int32Array(1);
    return this.#ask(fd, this.#requests.sectorSize, answer) === 'done' ? Number(answer[0]) : NOT_AVAILABLE;
  }

  lockByte(fd: number, at: number, locked: boolean): 'done' | 'taken' | NotAvailable {
    const calls = this.#locks;
    if (calls === undefined) return NOT_AVAILABLE;
    return this.#lock(fd, calls, calls.set, lockRequest(calls, locked ? calls.read : calls.none, at));
  }

  byteIsLocked(fd: number, at: number): boolean | NotAvailable {
    const calls = this.#locks;
    if (calls === undefined) return NOT_AVAILABLE;
    // the answer is put where the question was
    const request = lockRequest(calls, calls.write, at);
    if (this.#lock(fd, calls, calls.get, request) === NOT_AVAILABLE) return NOT_AVAILABLE;
    return request.getInt16(calls.type, LITTLE_ENDIAN) !== calls.none;
  }

  #lock(fd: number, calls: LockCalls, command: number, request: DataView): 'done' | 'taken' | NotAvailable {
    const fcntl = this.#fcntl;
    if (fcntl === undefined) return NOT_AVAILABLE;
    const bytes = new Uint8Array(request.buffer);
    for (;;) {
      const result = calls.variadic ? fcntl(fd, command, 'void *', bytes) : fcntl(fd, command, bytes);
      if (Number(result) >= 0) return 'done';
      const errno = this.#koffi.errno();
      const name = getSystemErrorName(-errno);
      if (name === 'EINTR') continue;
      if (name === 'EAGAIN' || name === 'EACCES') return 'taken';
      if (NO_LOCKS.has(name) || UNSUPPORTED.has(name)) return NOT_AVAILABLE;
      throw systemError('fcntl', errno);
    }
  }

  #seek(fd: number, offset: number, whence: number | undefined): number | NotAvailable {
    if (this.#lseek === undefined || whence === undefined) return NOT_AVAILABLE;
    const at = Number(this.#lseek(fd, offset, whence));
    if (at >= 0) return at;
    const errno = this.#koffi.errno();
    const name = getSystemErrorName(-errno);
    if (name === 'ENXIO') return -1;
    // EINVAL: this file system does not know the whence
    if (name === 'EINVAL' || UNSUPPORTED.has(name)) return NOT_AVAILABLE;
    throw systemError('lseek', errno);
  }

  #allocate(fd: number, mode: number, offset: number, length: number): NativeOutcome {
    const call = this.#fallocate;
    if (call === undefined) return NOT_AVAILABLE;
    for (;;) {
      const result = Number(call(fd, mode, offset, length));
      const outcome = this.#judge('fallocate', result);
      if (outcome !== 'again') return outcome;
    }
  }

  async #allocateLater(fd: number, mode: number, offset: number, length: number): Promise<NativeOutcome> {
    const call = this.#fallocate;
    if (call === undefined) return NOT_AVAILABLE;
    for (;;) {
      const outcome = await this.#run('fallocate', call, [fd, mode, offset, length]);
      if (outcome !== 'again') return outcome;
    }
  }

  #device(fd: number, request: number, offset: number, length: number): NativeOutcome {
    return this.#ask(fd, request, BigUint64Array.of(BigInt(offset), BigInt(length)));
  }

  async #deviceLater(fd: number, request: number, offset: number, length: number): Promise<NativeOutcome> {
    const call = this.#ioctl;
    if (call === undefined) return NOT_AVAILABLE;
    const range = BigUint64Array.of(BigInt(offset), BigInt(length));
    for (;;) {
      const outcome = await this.#run('ioctl', call, [fd, request, range]);
      if (outcome !== 'again') return outcome;
    }
  }

  #ask(fd: number, request: number, argument: BigUint64Array | Int32Array): NativeOutcome {
    const call = this.#ioctl;
    if (call === undefined) return NOT_AVAILABLE;
    for (;;) {
      const outcome = this.#judge('ioctl', Number(call(fd, request, argument)));
      if (outcome !== 'again') return outcome;
    }
  }

  #run(syscall: string, call: NativeFunction, args: readonly unknown[]): Promise<NativeOutcome | 'again'> {
    return new Promise((resolve, reject) => {
      call.async(...args, (error: Error | null, result: number | bigint) => {
        try {
          // koffi carries the pool thread's errno over, for the length of this callback
          if (error === null) resolve(this.#judge(syscall, Number(result)));
          else reject(error);
        } catch (failure) {
          reject(failure as Error);
        }
      });
    });
  }

  /** Reads errno first of all: anything else may change it. */
  #judge(syscall: string, result: number): NativeOutcome | 'again' {
    if (result >= 0) return 'done';
    const errno = this.#koffi.errno();
    const name = getSystemErrorName(-errno);
    if (name === 'EINTR') return 'again';
    if (UNSUPPORTED.has(name)) return NOT_AVAILABLE;
    throw systemError(syscall, errno);
  }
}

/** An error as `fs` makes them, so that callers treat both alike. */
function systemError(syscall: string, errno: number): Error {
  const code = getSystemErrorName(-errno);
  return Object.assign(new Error(`${code}: ${syscall}`), { code, errno: -errno, syscall });
}
