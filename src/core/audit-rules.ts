/** What every format's audit has in common: the rules of references, sizes, headers that are refused, and content that nobody is shown.
 *  Spec: none. Names are judged by their text alone: nothing is resolved, looked at or opened. */
import { type BlockError, hex, isBlockError } from '../base/errors.ts';
import {
  type AuditContext,
  type AuditPlace,
  type AuditRule,
  type AuditSeverity,
  findContent,
  isDeceptive,
  shown,
} from './audit.ts';

export function auditRule(id: string, severity: AuditSeverity, meaning: string, remedy: string): AuditRule {
  return { id, severity, meaning, remedy };
}

const LOOK_FIRST = 'read it with references denied (`--references=deny`), or name the file yourself (`--with-backing`)';

export const REFERENCE = {
  names: auditRule(
    'reference.names-file',
    'info',
    'The image names another file, which reading it opens: its content becomes part of the disk.',
    'know the file, or read the image with references denied (`--references=deny`)',
  ),
  outside: auditRule(
    'reference.outside',
    'medium',
    'The name is an absolute path: it means whatever file the reading host has there, readable to the guest afterwards.',
    LOOK_FIRST,
  ),
  parent: auditRule(
    'reference.parent',
    'medium',
    'The name climbs out of the directory of the image (`..`).',
    LOOK_FIRST,
  ),
  system: auditRule(
    'reference.system-path',
    'high',
    'The name lies below /dev, /proc, /sys or /run: devices, memory of processes, sockets. Opening alone can have effects.',
    LOOK_FIRST,
  ),
  protocol: auditRule(
    'reference.protocol',
    'high',
    'The name begins with a protocol (`nbd:`, `http:`, `fat:`, …) or is a network share: opening it makes the host talk to whoever the image names.',
    LOOK_FIRST,
  ),
  json: auditRule(
    'reference.json',
    'high',
    'The name is a `json:` description: some readers build any driver and any file from it, writable ones included (CVE-2024-4467). Not followed here.',
    'do not open it with other programs; give the image another backing file (`cowdisk rebase -u`)',
  ),
  self: auditRule(
    'reference.self',
    'high',
    'The image names itself, or one file in two roles: reading it goes round in circles, writing destroys it.',
    'do not write to it; give the image another backing file (`cowdisk rebase -u`)',
  ),
  formatMissing: auditRule(
    'reference.format-missing',
    'medium',
    'The format of the backing file is not recorded, so that readers look at its content to find out: what a guest wrote into a raw disk can make it another format, with references of its own.',
    'record it (`cowdisk rebase -u -b FILE -F FORMAT`), or read over a file that you name (`--with-backing FILE --with-backing-format FORMAT`)',
  ),
  formatOdd: auditRule(
    'reference.format-odd',
    'medium',
    'The format that is recorded for a named file is no image format that is known: programs may have a driver of that name with powers of its own.',
    'record the right format (`cowdisk rebase -u -b FILE -F FORMAT`)',
  ),
  encoding: auditRule(
    'reference.not-utf8',
    'low',
    'The name is not UTF-8: programs show different names for one file.',
    'name the file yourself (`--with-backing`)',
  ),
} as const;

export const TEXT = auditRule(
  'text.control',
  'medium',
  'A name in the image holds control characters, terminal escapes or marks that turn or hide text: printed as it is, it makes a terminal or a reader see something else.',
  'do not print names of this image as they are; `--json` shows them safely',
);

export const SIZE = {
  sparse: auditRule(
    'size.sparse',
    'info',
    'The disk is more than 1,000 times as large as its file, and 1 TiB at least.',
    'mind it where disk sizes are paid for or copied byte by byte',
  ),
  absurd: auditRule(
    'size.absurd',
    'medium',
    'The disk is larger than 64 TiB, and more than a million times as large as its file: copying it as raw, or giving every cluster a byte of memory, ends a program or a host.',
    'do not convert it without a limit on the target',
  ),
} as const;

export const HEADER = {
  invalid: auditRule(
    'header.invalid',
    'medium',
    'The header breaks a rule of its format, so that it is refused here; other readers may be less strict, and see something else.',
    'do not use it; `cowdisk recover` (qcow2) may save what it holds',
  ),
  limit: auditRule(
    'header.beyond-limit',
    'high',
    'A size or a count in the header is beyond what the format allows: readers that believe it allocate that much.',
    'do not use it',
  ),
  unsupported: auditRule(
    'header.unsupported',
    'medium',
    'The header asks for a version or a feature that is not known here: nothing can be said of what it makes readers do.',
    'ask whoever made the image for one without it',
  ),
  unknown: auditRule(
    'header.unknown-features',
    'low',
    'Feature bits are set that are not known here and that readers may ignore.',
    'ask whoever made the image what they are for',
  ),
} as const;

export const HIDDEN = {
  slack: auditRule(
    'hidden.slack',
    'low',
    'There are bytes that are not zero where the format has room for nothing: neither guests nor tools show them.',
    'convert the image (`cowdisk convert`): what nobody refers to is left behind',
  ),
  trailing: auditRule(
    'hidden.trailing',
    'low',
    'The file goes on behind everything that the image refers to, and not with zeros: somebody has appended something, or what was deleted last is still there.',
    'convert the image (`cowdisk convert`): what nobody refers to is left behind',
  ),
} as const;

export const AUDIT = {
  tables: auditRule(
    'audit.tables-unread',
    'medium',
    'The image has more tables than an audit reads: the findings are not complete.',
    'run `cowdisk check` in a sandbox with limits on time and memory',
  ),
  content: auditRule(
    'audit.content-unread',
    'info',
    'There is more unused space than an audit looks through: there may be content that is not told here.',
    'convert the image (`cowdisk convert`) if that matters',
  ),
} as const;

/** The rules that every format's audit may apply. */
export const COMMON_RULES: readonly AuditRule[] = [
  ...Object.values(REFERENCE),
  TEXT,
  ...Object.values(SIZE),
  ...Object.values(HEADER),
  ...Object.values(HIDDEN),
  ...Object.values(AUDIT),
];

// ---- texts and references ------------------------------------------------------------------------------------------------------

/** Judges a text of the image that programs print. @param what `the name of snapshot 3` */
export function auditText(context: AuditContext, what: string, text: string, place: AuditPlace): void {
  if (!isDeceptive(text)) return;
  context.book.add(TEXT, { ...place, value: text }, () => `${what} is not plain text: ${shown(text)}`);
}

/** A file that an image names, as recorded. */
export interface NamedFile extends AuditPlace {
  /** `backing file`, `data file`, `image file`. */
  readonly what: string;
  readonly name: string;
  /** As recorded, where the text may not tell. */
  readonly bytes?: Uint8Array | undefined;
  /** Recorded format; `undefined`: none. */
  readonly format?: string | undefined;
  /** Without a format its content is probed. */
  readonly probed: boolean;
}

/** Names that other programs know for formats of disks. */
const DISK_FORMATS = [
  'raw',
  'qcow2',
  'qcow',
  'qed',
  'vdi',
  'vhdx',
  'vpc',
  'vmdk',
  'parallels',
  'bochs',
  'cloop',
  'dmg',
];
const SYSTEM = /^\/+(dev|proc|sys|run)(\/|$)/;
const DRIVE = /^[a-zA-Z]:([\\/]|$)/;

/** Judges the name of a file by its text. */
export function auditReference(context: AuditContext, file: NamedFile): void {
  const { book } = context;
  const { what, name, bytes, format, offset, field } = file;
  const place = { offset, field, value: name };
  const told = `the ${what} is ${shown(name)}`;
  book.add(REFERENCE.names, place, `${told}${format === undefined ? '' : `, format ${shown(format)}`}`);
  auditText(context, `the name of the ${what}`, name, { offset, field });
  if (bytes !== undefined && !isUtf8(bytes)) book.add(REFERENCE.encoding, place, `${told}, which is not UTF-8`);
  auditPath(context, file, told);
  if (format === undefined) {
    if (file.probed) book.add(REFERENCE.formatMissing, place, `${told}, whose format is not recorded`);
    return;
  }
  auditText(context, `the format of the ${what}`, format, { offset, field });
  if (DISK_FORMATS.includes(format) || context.formatNames.includes(format)) return;
  book.add(REFERENCE.formatOdd, { offset, field, value: format }, `${told}, as format ${shown(format)}`);
}

function auditPath(context: AuditContext, file: NamedFile, told: string): void {
  const { book } = context;
  const place = { offset: file.offset, field: file.field, value: file.name };
  const path = file.name.startsWith('file:') ? file.name.slice(5) : file.name;
  const protocol = DRIVE.test(path) ? undefined : /^([^/]*?):/.exec(path)?.[1];
  if (protocol === 'json') book.add(REFERENCE.json, place, `${told}: a description, not a name`);
  else if (protocol !== undefined) {
    book.add(REFERENCE.protocol, place, () => `${told}: protocol ${shown(protocol)}`);
  } else if (/^(\\\\|\/\/)[^\\/]/.test(path)) book.add(REFERENCE.protocol, place, `${told}: a network share or device`);
  else if (SYSTEM.test(normal(path))) book.add(REFERENCE.system, place, `${told}: a part of the system`);
  else if (/^[\\/]/.test(path) || DRIVE.test(path)) book.add(REFERENCE.outside, place, `${told}: an absolute path`);
  if (/(^|[\\/])\.\.([\\/]|$)/.test(path)) book.add(REFERENCE.parent, place, `${told}: outside of its directory`);
  if (isSelf(context.name, path)) book.add(REFERENCE.self, place, `${told}: the image itself`);
}

/** `/a/../dev/x` is `/dev/x`. */
function normal(path: string): string {
  if (!path.startsWith('/')) return path;
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '' && part !== '.') parts.push(part);
  }
  return `/${parts.join('/')}`;
}

function isSelf(image: string, path: string): boolean {
  const own = image.replace(/^.*[\\/]/, '');
  return path === image || path.replace(/^(\.[\\/]+)+/, '') === own;
}

/** One file in two roles. */
export function auditSameFile(context: AuditContext, a: NamedFile, b: NamedFile): void {
  if (a.name !== b.name) return;
  context.book.add(
    REFERENCE.self,
    { offset: a.offset, field: a.field, value: a.name },
    `the ${a.what} and the ${b.what} are both ${shown(a.name)}`,
  );
}

export function isUtf8(bytes: Uint8Array): boolean {
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

// ---- sizes, headers, unused space ----------------------------------------------------------------------------------------------

const TiB = 2 ** 40;

/** @param virtualSize of the disk; `Infinity` above 2^53-1 */
export function auditSize(context: AuditContext, virtualSize: number, place: AuditPlace): void {
  const { book, file } = context;
  const ratio = virtualSize / Math.max(file.size, 1);
  const value = Number.isFinite(virtualSize) ? virtualSize : 'above 2^53-1';
  const told = () => `a disk of ${value} bytes in a file of ${file.size}`;
  if (virtualSize > 64 * TiB && ratio > 1e6) book.add(SIZE.absurd, { ...place, value }, told);
  else if (virtualSize >= TiB && ratio > 1000) book.add(SIZE.sparse, { ...place, value }, told);
}

/** Runs what checks a header; what it refuses is a finding.
 *  @returns `undefined` where it was refused. @throws what is no fault of the image. */
export async function auditHeader<T>(context: AuditContext, check: () => T | Promise<T>): Promise<T | undefined> {
  try {
    return await check();
  } catch (error) {
    addRefusal(context, error);
    return undefined;
  }
}

/** Adds the finding of an error that says what is wrong with an image. @throws `error`, where it is another one. */
export function addRefusal(context: AuditContext, error: unknown): void {
  if (!isBlockError(error)) throw error;
  const rule = ruleOf(error);
  if (rule === undefined) throw error;
  const { offset } = error.details;
  context.book.add(
    rule,
    { offset: typeof offset === 'number' ? offset : undefined, field: fieldOf(error), value: error.reason },
    () => `refused: ${shown(error.message.replace(/^\S+ ".*?": /s, '')).slice(1, -1)}`,
  );
}

function ruleOf({ code }: BlockError): AuditRule | undefined {
  if (code === 'TOO_LARGE') return HEADER.limit;
  if (code === 'UNSUPPORTED') return HEADER.unsupported;
  return code === 'CORRUPT' || code === 'WRONG_FORMAT' ? HEADER.invalid : undefined;
}

function fieldOf({ details }: BlockError): string | undefined {
  return typeof details['field'] === 'string' ? details['field'] : undefined;
}

/** Judges bytes in which the format keeps nothing.
 *  @param what `between header and bitmap` */
export async function auditSlack(context: AuditContext, what: string, start: number, end: number): Promise<void> {
  if (start >= Math.min(end, context.file.size)) return;
  const { at, unread } = await findContent(context, start, end);
  if (at !== undefined) context.book.add(HIDDEN.slack, { offset: at }, `there is content ${what}, at ${hex(at)}`);
  if (unread > 0) {
    context.book.add(AUDIT.content, { offset: start, value: unread }, `${unread} bytes ${what} were not looked at`);
  }
}
