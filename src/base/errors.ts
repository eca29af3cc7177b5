/** Typed errors: the one way this library says no.
 *  Owns the error class, its stable codes and the cross-copy brand. Knows nothing of disks.
 *  Invariant: `code` and `reason` are API; the text of `message` is for people and may change. */

/** What kind of failure it is. Programs branch on this. */
export type ErrorCode =
  | 'INVALID_ARGUMENT' // the caller passed something that can never work
  | 'OPTION' // an option is unknown, malformed or contradicts another
  | 'NOT_FOUND' // the named thing does not exist
  | 'EXISTS' // the named thing is already there
  | 'ACCESS' // the system denies it
  | 'READ_ONLY' // a write to something opened read-only
  | 'NO_SPACE' // the store is full
  | 'IO' // the store failed
  | 'CORRUPT' // the image contradicts its format
  | 'WRONG_FORMAT' // the image is not in the format it was opened as
  | 'UNSUPPORTED' // the image or request needs a feature that is not here
  | 'ENCRYPTED' // the image needs a key
  | 'REFERENCE_DENIED' // the image names another file and the caller's policy does not allow it
  | 'CHAIN' // a backing chain loops or is too deep
  | 'OUT_OF_RANGE' // an offset or length outside the disk
  | 'TOO_LARGE' // a size beyond what the format or this library can hold
  | 'BUSY' // another process or request holds it
  | 'LOCKED' // another program has the file open in a way that excludes this one
  | 'PROTOCOL' // the other side of a connection does not keep to its protocol
  | 'CLOSED' // used after close
  | 'ABORTED' // the caller's AbortSignal fired
  | 'INTERNAL'; // a broken invariant of this library: a bug

/** Facts of the failure, by name; offsets and sizes are numbers of bytes unless the name says otherwise. */
export type ErrorDetails = Readonly<Record<string, unknown>>;

export interface BlockErrorOptions {
  /** Stable identifier of the exact finding, `room.finding` (`qcow2.cluster-bits`); the command line maps it to QEMU's sentence. */
  readonly reason?: string;
  readonly details?: ErrorDetails;
  readonly cause?: unknown;
}

const BRAND = Symbol.for('cowdisk.BlockError');

/** Every error this library throws on purpose. `message` is lower case and says what, where and which bound. */
export class BlockError extends Error {
  override readonly name = 'BlockError';
  readonly code: ErrorCode;
  readonly reason: string | undefined;
  readonly details: ErrorDetails;
  readonly [BRAND] = true;

  constructor(code: ErrorCode, message: string, options: BlockErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.reason = options.reason;
    this.details = options.details ?? {};
  }

  toJSON(): Record<string, unknown> {
    return { name: this.name, code: this.code, reason: this.reason, message: this.message, details: this.details };
  }
}

/** True for errors of any copy of this library. */
export function isBlockError(value: unknown): value is BlockError {
  return typeof value === 'object' && value !== null && (value as Record<symbol, unknown>)[BRAND] === true;
}

const BY_ERRNO: Readonly<Record<string, ErrorCode>> = {
  ENOENT: 'NOT_FOUND',
  ENOTDIR: 'NOT_FOUND',
  ENXIO: 'NOT_FOUND',
  EEXIST: 'EXISTS',
  EACCES: 'ACCESS',
  EPERM: 'ACCESS',
  EROFS: 'READ_ONLY',
  ENOSPC: 'NO_SPACE',
  EDQUOT: 'NO_SPACE',
  EFBIG: 'TOO_LARGE',
  ENAMETOOLONG: 'INVALID_ARGUMENT',
  EISDIR: 'INVALID_ARGUMENT',
  EINVAL: 'INVALID_ARGUMENT',
  EBUSY: 'BUSY',
  EAGAIN: 'BUSY',
  ETXTBSY: 'BUSY',
  EOPNOTSUPP: 'UNSUPPORTED',
  ENOTSUP: 'UNSUPPORTED',
  ENOSYS: 'UNSUPPORTED',
};

/** Text of an errno as the C library has it, because QEMU's messages end with it. */
export const ERRNO_TEXT: Readonly<Record<string, string>> = {
  EPERM: 'Operation not permitted',
  ENOENT: 'No such file or directory',
  EIO: 'Input/output error',
  ENXIO: 'No such device or address',
  EBADF: 'Bad file descriptor',
  EAGAIN: 'Resource temporarily unavailable',
  ENOMEM: 'Cannot allocate memory',
  EACCES: 'Permission denied',
  EBUSY: 'Device or resource busy',
  EEXIST: 'File exists',
  ENODEV: 'No such device',
  ENOTDIR: 'Not a directory',
  EISDIR: 'Is a directory',
  EINVAL: 'Invalid argument',
  EMFILE: 'Too many open files',
  ETXTBSY: 'Text file busy',
  EFBIG: 'File too large',
  ENOSPC: 'No space left on device',
  ESPIPE: 'Illegal seek',
  EROFS: 'Read-only file system',
  EPIPE: 'Broken pipe',
  ENAMETOOLONG: 'File name too long',
  ELOOP: 'Too many levels of symbolic links',
  EOPNOTSUPP: 'Operation not supported',
  ENOTSUP: 'Operation not supported',
  EDQUOT: 'Disk quota exceeded',
  ENOMEDIUM: 'No medium found',
  ESRCH: 'No such process',
  EINTR: 'Interrupted system call',
  E2BIG: 'Argument list too long',
  ENOEXEC: 'Exec format error',
  ECHILD: 'No child processes',
  EFAULT: 'Bad address',
  ENOTBLK: 'Block device required',
  EXDEV: 'Invalid cross-device link',
  ENFILE: 'Too many open files in system',
  ENOTTY: 'Inappropriate ioctl for device',
  EMLINK: 'Too many links',
  EDOM: 'Numerical argument out of domain',
  ERANGE: 'Numerical result out of range',
  EDEADLK: 'Resource deadlock avoided',
  ENOLCK: 'No locks available',
  ENOSYS: 'Function not implemented',
  ENOTEMPTY: 'Directory not empty',
  ENOMSG: 'No message of desired type',
  EIDRM: 'Identifier removed',
  ECHRNG: 'Channel number out of range',
  EL2NSYNC: 'Level 2 not synchronized',
  EL3HLT: 'Level 3 halted',
  EL3RST: 'Level 3 reset',
  ELNRNG: 'Link number out of range',
  EUNATCH: 'Protocol driver not attached',
  ENOCSI: 'No CSI structure available',
  EL2HLT: 'Level 2 halted',
  EBADE: 'Invalid exchange',
  EBADR: 'Invalid request descriptor',
  EXFULL: 'Exchange full',
  ENOANO: 'No anode',
  EBADRQC: 'Invalid request code',
  EBADSLT: 'Invalid slot',
  EBFONT: 'Bad font file format',
  ENOSTR: 'Device not a stream',
  ENODATA: 'No data available',
  ETIME: 'Timer expired',
  ENOSR: 'Out of streams resources',
  ENONET: 'Machine is not on the network',
  ENOPKG: 'Package not installed',
  EREMOTE: 'Object is remote',
  ENOLINK: 'Link has been severed',
  EADV: 'Advertise error',
  ESRMNT: 'Srmount error',
  ECOMM: 'Communication error on send',
  EPROTO: 'Protocol error',
  EMULTIHOP: 'Multihop attempted',
  EDOTDOT: 'RFS specific error',
  EBADMSG: 'Bad message',
  EOVERFLOW: 'Value too large for defined data type',
  ENOTUNIQ: 'Name not unique on network',
  EBADFD: 'File descriptor in bad state',
  EREMCHG: 'Remote address changed',
  ELIBACC: 'Can not access a needed shared library',
  ELIBBAD: 'Accessing a corrupted shared library',
  ELIBSCN: '.lib section in a.out corrupted',
  ELIBMAX: 'Attempting to link in too many shared libraries',
  ELIBEXEC: 'Cannot exec a shared library directly',
  EILSEQ: 'Invalid or incomplete multibyte or wide character',
  ERESTART: 'Interrupted system call should be restarted',
  ESTRPIPE: 'Streams pipe error',
  EUSERS: 'Too many users',
  ENOTSOCK: 'Socket operation on non-socket',
  EDESTADDRREQ: 'Destination address required',
  EMSGSIZE: 'Message too long',
  EPROTOTYPE: 'Protocol wrong type for socket',
  ENOPROTOOPT: 'Protocol not available',
  EPROTONOSUPPORT: 'Protocol not supported',
  ESOCKTNOSUPPORT: 'Socket type not supported',
  EPFNOSUPPORT: 'Protocol family not supported',
  EAFNOSUPPORT: 'Address family not supported by protocol',
  EADDRINUSE: 'Address already in use',
  EADDRNOTAVAIL: 'Cannot assign requested address',
  ENETDOWN: 'Network is down',
  ENETUNREACH: 'Network is unreachable',
  ENETRESET: 'Network dropped connection on reset',
  ECONNABORTED: 'Software caused connection abort',
  ECONNRESET: 'Connection reset by peer',
  ENOBUFS: 'No buffer space available',
  EISCONN: 'Transport endpoint is already connected',
  ENOTCONN: 'Transport endpoint is not connected',
  ESHUTDOWN: 'Cannot send after transport endpoint shutdown',
  ETOOMANYREFS: 'Too many references: cannot splice',
  ETIMEDOUT: 'Connection timed out',
  ECONNREFUSED: 'Connection refused',
  EHOSTDOWN: 'Host is down',
  EHOSTUNREACH: 'No route to host',
  EALREADY: 'Operation already in progress',
  EINPROGRESS: 'Operation now in progress',
  ESTALE: 'Stale file handle',
  EUCLEAN: 'Structure needs cleaning',
  ENOTNAM: 'Not a XENIX named type file',
  ENAVAIL: 'No XENIX semaphores available',
  EISNAM: 'Is a named type file',
  EREMOTEIO: 'Remote I/O error',
  EMEDIUMTYPE: 'Wrong medium type',
  ECANCELED: 'Operation canceled',
  ENOKEY: 'Required key not available',
  EKEYEXPIRED: 'Key has expired',
  EKEYREVOKED: 'Key has been revoked',
  EKEYREJECTED: 'Key was rejected by service',
  EOWNERDEAD: 'Owner died',
  ENOTRECOVERABLE: 'State not recoverable',
  ERFKILL: 'Operation not possible due to RF-kill',
};

const ERRNO_OF_CODE: Readonly<Partial<Record<ErrorCode, string>>> = {
  INVALID_ARGUMENT: 'EINVAL',
  OPTION: 'EINVAL',
  NOT_FOUND: 'ENOENT',
  EXISTS: 'EEXIST',
  ACCESS: 'EACCES',
  READ_ONLY: 'EROFS',
  NO_SPACE: 'ENOSPC',
  UNSUPPORTED: 'ENOTSUP',
  TOO_LARGE: 'EFBIG',
  BUSY: 'EBUSY',
  LOCKED: 'EAGAIN',
  CLOSED: 'EBADF',
  WRONG_FORMAT: 'EINVAL',
  PROTOCOL: 'EPROTO',
  CORRUPT: 'EINVAL',
};

/** The errno name behind an error: the system's own where there was one, else the nearest to its code (`EIO` last). */
export function errnoOf(error: unknown): string {
  for (let at: unknown = error, depth = 0; at !== undefined && at !== null && depth < 8; depth++) {
    const errno = (at as { details?: ErrorDetails }).details?.errno ?? (at as { code?: unknown }).code;
    if (typeof errno === 'string' && /^E[A-Z0-9]+$/.test(errno) && errno in ERRNO_TEXT) return errno;
    at = (at as { cause?: unknown }).cause;
  }
  return (isBlockError(error) ? ERRNO_OF_CODE[error.code] : undefined) ?? 'EIO';
}

/** Wraps a failure of the system (`fs`, a native call) so that its errno and text survive.
 *  @param doing what was being done, lower case: `could not open "a.raw"`. */
export function fromSystemError(cause: unknown, doing: string, details: ErrorDetails = {}): BlockError {
  if (isBlockError(cause)) return cause;
  const errno = (cause as { code?: unknown } | null)?.code;
  const name = typeof errno === 'string' ? errno : 'EIO';
  const text = ERRNO_TEXT[name]?.toLowerCase() ?? (cause instanceof Error ? cause.message : String(cause));
  return new BlockError(BY_ERRNO[name] ?? 'IO', `${doing}: ${text}`, {
    reason: 'system',
    details: { ...details, errno: name },
    cause,
  });
}

/** For states that cannot be: throws INTERNAL, so that a bug shows at its cause and never as a wrong byte. */
export function assert(condition: boolean, what: string): asserts condition {
  if (!condition) throw new BlockError('INTERNAL', `internal error: ${what}`);
}

/** An offset, size or address as messages show it: `0x1f0000`. */
export function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
