/** The `file` protocol: names of the local file system (Node). Owns what a name means, which store fits what stands there,
 *  and creating, renaming and removing files.
 *  Invariants: nothing is opened before it is known not to be a pipe or directory (opening a pipe waits for its other end);
 *  an existing file is emptied only after it was opened. */
import {
  type BigIntStats,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  ftruncateSync,
  lstatSync,
  openSync,
  open as openWithCallback,
  realpathSync,
  rename as renameWithCallback,
  statSync,
  unlink as unlinkWithCallback,
  write as writeWithCallback,
} from 'node:fs';
import { basename, dirname, join, resolve as resolvePath, sep } from 'node:path';
import { BlockError, fromSystemError } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { choice, defineOptions, type OptionsOf, text } from '../base/options.ts';
import type { BlockNode } from '../core/node.ts';
import { CREATION_CLAIM } from '../core/permissions.ts';
import type {
  CreateFileOptions,
  FileStatus,
  OpenFileOptions,
  ProtocolDriver,
  ProtocolGraph,
} from '../core/protocol.ts';
import { native } from '../platform/node/native.ts';
import { BlockDeviceStore, deviceIdentity, sizeFromSysfs } from './block-device.ts';
import { promised } from './fd-io.ts';
import { FileLocks } from './file-locks.ts';
import { FileStore } from './file-store.ts';
import { ForwardSink, type ForwardTarget } from './forward-sink.ts';

export { BlockDeviceStore } from './block-device.ts';
export { FileStore } from './file-store.ts';

const SCHEME = 'file:';
/** Mode of new files, before the umask; as qemu-img creates them. */
const CREATE_MODE = 0o644;

const openOptions = defineOptions({
  filename: text({ content: true, help: 'name of the file' }),
  locking: choice(['auto', 'on', 'off'], { default: 'auto', help: 'keep other processes out while the file is open' }),
  aio: choice(['threads', 'native', 'io_uring'], {
    default: 'threads',
    help: 'how the host is asked for data; all are the same here',
  }),
});

const graph: ProtocolGraph = {
  openOptions,
  parseName: (name) => ({ filename: pathOf(name) }),
  nameOf: (options) => {
    const path = options.get('filename');
    // A colon in the first part would make a protocol of it.
    return path === undefined || !/^[^/]*:/.test(path) ? path : SCHEME + path;
  },
  open: (given, options) => {
    const { filename, locking } = given as OptionsOf<typeof openOptions>;
    if (filename === undefined || filename === '') {
      throw new BlockError('INVALID_ARGUMENT', 'file: needs the option filename', { reason: 'file.no-name' });
    }
    // what is said of this file goes before what is said of all of them
    return open(SCHEME + filename, { ...options, locking: locking === 'auto' ? options.locking : locking });
  },
};

export const fileProtocol: ProtocolDriver = {
  name: 'file',
  schemes: ['file'],
  graph,
  open,
  create,
  status,
  rename,
  remove,
  resolve: (base, relative) => resolveFileName(base, relative),
  absolute,
};

/** The path behind a name of this protocol. */
function pathOf(name: string): string {
  return name.startsWith(SCHEME) ? name.slice(SCHEME.length) : name;
}

async function open(name: string, options: OpenFileOptions): Promise<BlockNode> {
  throwIfAborted(options.signal);
  const path = pathOf(name);
  const doing = `could not open "${path}"`;
  const before = attempt(doing, name, () => statSync(path, { bigint: true }));
  requireDataKind(kindOf(before), doing, name, false);
  const access = options.readOnly ? constants.O_RDONLY : constants.O_RDWR;
  const fd = attempt(doing, name, () => openSync(path, access));
  return storeFor(fd, name, options, doing);
}

async function create(name: string, options: CreateFileOptions): Promise<BlockNode> {
  throwIfAborted(options.signal);
  const path = pathOf(name);
  const doing = `could not create "${path}"`;
  const before = attempt(doing, name, () => statSync(path, { bigint: true, throwIfNoEntry: false }));
  if (before !== undefined && options.exclusive !== true) {
    const kind = kindOf(before);
    requireDataKind(kind, doing, name, true);
    if (kind === 'pipe') return openPipe(name, doing);
  }
  const flags = constants.O_RDWR + constants.O_CREAT + (options.exclusive === true ? constants.O_EXCL : 0);
  const fd = attempt(doing, name, () => openSync(path, flags, CREATE_MODE));
  // a name that nobody knew a moment ago is nobody else's: there is no one to keep away
  const claims = options.exclusive !== true;
  const { unsafe, locking, like } = options;
  return storeFor(fd, name, { readOnly: false, unsafe, locking }, doing, { like, claims });
}

/** Gives a new file the permissions and the owner of `path`. Only the owner may be refused: not everybody may give files away. */
function takeOver(fd: number, path: string): void {
  const { mode, uid, gid } = statSync(path);
  const mine = fstatSync(fd);
  if (mine.uid !== uid || mine.gid !== gid) {
    try {
      fchownSync(fd, uid, gid);
    } catch (error) {
      if ((error as { code?: string }).code !== 'EPERM') throw error;
    }
  }
  fchmodSync(fd, mode % 0o10000);
}

async function status(name: string): Promise<FileStatus | undefined> {
  const path = pathOf(name);
  let stat: BigIntStats;
  try {
    stat = statSync(path, { bigint: true });
  } catch (error) {
    const failure = fromSystemError(error, `could not look at "${path}"`, { name, path });
    // below a file there is nothing either
    if (failure.details['errno'] === 'ENOENT' || failure.details['errno'] === 'ENOTDIR') return undefined;
    throw failure;
  }
  const kind = kindOf(stat);
  const modifiedSeconds = Number(stat.mtimeNs / 1_000_000_000n);
  if (kind === 'device') {
    return { kind, size: sizeFromSysfs(stat.rdev) ?? 0, modifiedSeconds, identity: deviceIdentity(stat) };
  }
  const isLink = attempt(`could not look at "${path}"`, name, () => lstatSync(path)).isSymbolicLink();
  return {
    kind,
    size: kind === 'file' ? Number(stat.size) : 0,
    modifiedSeconds,
    identity: `${stat.dev}:${stat.ino}`,
    realName: isLink ? attempt(`could not look at "${path}"`, name, () => realpathSync(path)) : undefined,
  };
}

async function rename(from: string, to: string): Promise<void> {
  const [source, target] = [pathOf(from), pathOf(to)];
  try {
    await promised((done) => renameWithCallback(source, target, done));
  } catch (error) {
    throw fromSystemError(error, `could not rename "${source}" to "${target}"`, { name: from, path: source, to });
  }
}

async function remove(name: string): Promise<void> {
  const path = pathOf(name);
  try {
    await promised((done) => unlinkWithCallback(path, done));
  } catch (error) {
    throw fromSystemError(error, `could not remove "${path}"`, { name, path });
  }
}

/** The name that `relative`, found in the file `base`, means: absolute names and names with the prefix stand for themselves,
 *  others are put behind the directory part of `base`, letter by letter (`..` stays, as qemu-img shows it).
 *  @param windows backslashes separate as well and `C:` begins an absolute name */
export function resolveFileName(base: string, relative: string, windows = sep === '\\'): string {
  if (relative.startsWith(SCHEME)) return relative;
  if (relative.startsWith('/')) return relative;
  if (windows && (relative.startsWith('\\') || /^[a-zA-Z]:/.test(relative))) return relative;
  const path = pathOf(base);
  let end = path.lastIndexOf('/') + 1;
  if (windows) end = Math.max(end, path.lastIndexOf('\\') + 1, /^[a-zA-Z]:/.test(path) ? 2 : 0);
  const joined = path.slice(0, end) + relative;
  // a colon in the first part would make a protocol of it (not of a drive letter)
  const first = joined.split('/', 1)[0] as string;
  if (!first.includes(':') || (windows && /^[a-zA-Z]:[^:]*$/.test(first))) return joined;
  return `./${joined}`;
}

async function absolute(name: string): Promise<string> {
  const path = resolvePath(pathOf(name));
  return join(
    attempt(`could not look at "${path}"`, name, () => realpathSync(dirname(path))),
    basename(path),
  );
}

function kindOf(stat: BigIntStats): FileStatus['kind'] {
  if (stat.isFile()) return 'file';
  if (stat.isDirectory()) return 'directory';
  if (stat.isBlockDevice() || stat.isCharacterDevice()) return 'device';
  return stat.isFIFO() ? 'pipe' : 'other';
}

/** @throws {@link BlockError} for what cannot hold an image. */
function requireDataKind(kind: FileStatus['kind'], doing: string, name: string, pipes: boolean): void {
  if (kind === 'file' || kind === 'device' || (pipes && kind === 'pipe')) return;
  const what = { directory: 'it is a directory', pipe: 'it is a pipe', other: 'it is neither a file nor a device' }[
    kind
  ];
  throw new BlockError('INVALID_ARGUMENT', `${doing}: a regular file is needed, ${what}`, {
    reason: 'file.not-regular',
    details: { name, path: pathOf(name), errno: kind === 'directory' ? 'EISDIR' : 'EINVAL', kind },
  });
}

function attempt<T>(doing: string, name: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw fromSystemError(error, doing, { name, path: pathOf(name) });
  }
}

/** A regular file or block device that is open already, standard input for one, to be read at any place.
 *  @param name what messages call it
 *  @returns `undefined` for pipes and the like, which are left open. */
export function storeOfDescriptor(
  fd: number,
  name: string,
  { locking, forceShare }: Pick<OpenFileOptions, 'locking' | 'forceShare'> = {},
): BlockNode | undefined {
  const stat = attempt(`could not look at "${name}"`, name, () => fstatSync(fd, { bigint: true }));
  if (!stat.isFile() && !stat.isBlockDevice()) return undefined;
  const locks = new FileLocks(fd, { name, locking, forceShare, native });
  if (stat.isFile()) return new FileStore(fd, { name, readOnly: true, locks });
  return new BlockDeviceStore(fd, { name, readOnly: true, character: false, locks });
}

/** Bytes into an open descriptor, one piece after the other, each whole. The descriptor stays open. */
export function descriptorTarget(fd: number, name: string): ForwardTarget {
  const { write } = pipeTarget(fd, name);
  return { write };
}

/** Wraps an open descriptor by what it turned out to be; closes it when that fails.
 *  @param created the file is new: it is emptied, when nobody else minds, and becomes like another one where that is asked */
function storeFor(
  fd: number,
  name: string,
  { readOnly, unsafe, locking, forceShare }: OpenFileOptions,
  doing: string,
  created?: { readonly like: string | undefined; readonly claims: boolean },
): BlockNode {
  const path = pathOf(name);
  try {
    const stat = fstatSync(fd, { bigint: true });
    const kind = kindOf(stat);
    requireDataKind(kind, doing, name, false);
    const locks = new FileLocks(fd, { name: path, locking, forceShare, native });
    if (created?.claims === true) locks.claim(CREATION_CLAIM);
    if (kind === 'device') {
      return new BlockDeviceStore(fd, { name: path, readOnly, locks, character: stat.isCharacterDevice() });
    }
    if (created !== undefined && stat.size > 0n) ftruncateSync(fd, 0);
    if (created?.like !== undefined) takeOver(fd, pathOf(created.like));
    return new FileStore(fd, { name: path, readOnly, unsafe, locks });
  } catch (error) {
    closeSync(fd);
    throw fromSystemError(error, doing, { name, path });
  }
}

/** A pipe takes bytes in order. It is opened in the pool, because that waits for the reader. */
function openPipe(name: string, doing: string): Promise<BlockNode> {
  const path = pathOf(name);
  return new Promise((resolve, reject) => {
    openWithCallback(path, constants.O_WRONLY, (error, fd) => {
      if (error === null) resolve(new ForwardSink(pipeTarget(fd, path), { name: path }));
      else reject(fromSystemError(error, doing, { name, path }));
    });
  });
}

function pipeTarget(fd: number, path: string): ForwardTarget {
  const send = (chunk: Uint8Array, start: number): Promise<number> =>
    new Promise((resolve, reject) => {
      writeWithCallback(fd, chunk, start, chunk.length - start, null, (error, count) => {
        if (error === null) resolve(count);
        else reject(fromSystemError(error, `could not write to "${path}"`, { name: path }));
      });
    });
  return {
    async write(chunk) {
      let done = 0;
      while (done < chunk.length) done += await send(chunk, done);
    },
    async end() {
      closeSync(fd);
    },
  };
}
