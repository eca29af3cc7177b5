/** QEMU's own sentence for each finding of this library, by the error's `reason`. Data and a little glue.
 *  Invariants: a reason that is not here is unknown to QEMU, and the house's sentence is shown; frames such as
 *  `Could not open 'NAME': ` are the caller's. */
import { type BlockError, ERRNO_TEXT, type ErrorDetails, errnoOf, isBlockError } from '../../base/errors.ts';
import { jsonProblem } from './json-problem.ts';
import { BITMAP_TEXTS } from './qemu-text-bitmaps.ts';
import { BLKDEBUG_TEXTS } from './qemu-text-blkdebug.ts';
import { FILTER_TEXTS } from './qemu-text-filters.ts';
import { LUKS_TEXTS } from './qemu-text-luks.ts';
import { QCOW2_TEXTS } from './qemu-text-qcow2.ts';

export interface QemuText {
  readonly text: string;
  /** Printed after it as it is. */
  readonly hint?: string | undefined;
}

/** From the details (and the error, where they do not suffice) to the sentence; `undefined`: no sentence after all. */
export type TextRule = string | ((details: ErrorDetails, error: BlockError) => string | QemuText | undefined);

const TEXTS: Readonly<Record<string, TextRule>> = {
  'image.unknown-format': ({ format }) => `Unknown driver '${format}'`,
  'image.not-recognised': () => 'Image format could not be determined',
  'image.backing': (_, error) => nested('Could not open backing file: ', error),
  'image.data-file': (_, error) => nested('', error),
  'image.data-file-override': "'data-file' can only be set for images with an external data file",
  'image.extent-file': (_, error) => nested('Could not open extent file: ', error),
  'image.header-file': (_, error) => nested('', error),
  'image.raw-signature': 'Operation not permitted',
  'image.snapshots': ({ format }) =>
    `Block format '${format}' used by device '' does not support temporarily loading internal snapshots`,
  'graph.json': ({ text }) => `Could not parse the JSON options: JSON parse error, ${jsonProblem(String(text))}`,
  'graph.json-empty': 'Could not parse the JSON options: Expecting a JSON value',
  'graph.json-object': 'Invalid JSON object given',
  'graph.reference': ({ name }) => `Cannot find device='${name}' nor node-name='${name}'`,
  'graph.no-driver': 'Must specify either driver or file',
  'graph.no-file': ({ child }) => `A block device must be specified for "${child}"`,
  'graph.option': ({ name, format, protocol }) =>
    protocol === true
      ? `Block protocol '${format}' doesn't support the option '${name}'`
      : `Block format '${format}' does not support the option '${name}'`,
  'graph.value': ({ name, kind }) => valueText(String(name), kind),
  'graph.switch': ({ name }) => `Parameter '${name}' expects 'on' or 'off'`,
  'graph.discard': 'Invalid discard option',
  'graph.detect-zeroes': ({ value }) => `invalid parameter value: ${value}`,
  'graph.detect-zeroes-unmap':
    'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
  'graph.node-name': ({ name }) => `Invalid node-name: '${name}'`,
  'graph.node-name-twice': ({ name }) => `Duplicate nodes with node-name='${name}'`,
  'file.no-name': "The 'file' block driver requires a file name",
  'image.force-share': 'force-share=on can only be used with read-only images',
  'file.locked': ({ name, permission, shared }) => ({
    text: `Failed to get ${shared === true ? 'shared ' : ''}"${permission}" lock`,
    hint: `Is another process using the image [${name}]?\n`,
  }),
  'file.lock-byte': ({ byte }) => `Failed to lock byte ${byte}`,
  'protocol.unknown': ({ protocol }) => `Unknown protocol '${protocol}'`,
  'file.not-regular': ({ path, kind }, error) =>
    error.message.startsWith('could not create')
      ? `Could not create '${path}': ${kind === 'directory' ? ERRNO_TEXT['EISDIR'] : 'Invalid argument'}`
      : path === ''
        ? "The 'file' block driver requires a file name"
        : `'file' driver requires '${path}' to be a regular file`,
  'target.directory': ({ name }) => `Could not create '${name}': Is a directory`,
  'reference.name': ({ name }, error) =>
    name === '' && error.message.includes('data file') ? "Could not create '': No such file or directory" : undefined,
  'create.unsupported': ({ format }) => `Format driver '${format}' does not support image creation`,
  'create.size-missing': 'Image creation needs a size parameter',
  'create.size-twice': 'The image size must be specified only once',
  'create.backing-unsupported': ({ format }) => `Backing file not supported for file format '${format}'`,
  'create.backing-empty': 'Expected backing file name, got empty string',
  'create.backing-format': ({ detected }) => ({
    text: 'Backing file specified without backing format',
    hint: detected === undefined ? undefined : `Detected format of ${detected}.`,
  }),
  'create.backing-open': (_, error) => {
    const cause = isBlockError(error.cause) ? qemuText(error.cause).text : strerror(error);
    return { text: cause, hint: 'Could not open backing image.\n' };
  },
  'create.same-name': 'Error: Trying to create an image with the same filename as the backing file',
  'create.format-without-backing': 'Backing format cannot be used without backing file',
  'raw.preallocation': ({ mode }) => `Unsupported preallocation mode: ${mode}`,
  'raw.device-small': 'Cannot grow device files',
  'option.choice': ({ name, value }) =>
    // What files take is read by other code than what formats take.
    ['preallocation', 'locking', 'aio'].includes(String(name))
      ? `invalid parameter value: ${value}`
      : `Parameter '${name}' does not accept value '${value}'`,
  'raw.window-size': ({ size }) =>
    typeof size === 'number' && size % 512 !== 0 ? 'Specified size is not multiple of 512' : undefined,
  'raw.window': ({ offset, size, fileSize }) =>
    Number(offset) > Number(fileSize)
      ? `Offset (${offset}) cannot be greater than size of the containing file (${fileSize})`
      : `The sum of offset (${offset}) and size (${size}) has to be smaller or equal to the  actual size of the containing file (${fileSize})`,
  'check.unsupported': 'This image format does not support checks',
  'measure.unsupported': ({ format }) => `Block driver '${format}' does not support size measurement`,
  'convert.compress-unsupported': 'Compression not supported for this file format',
  'convert.target-small': 'output file is smaller than input file',
  'convert.zero-needs-existing': '--target-is-zero requires use of -n flag',
  'commit.no-backing': 'Image does not have a backing file',
  'commit.base-not-found': ({ name, base }) => `Did not find '${base}' in the backing chain of '${name}'`,
  'commit.base-open': (_, error) =>
    error.code === 'LOCKED' ? nested('', error) : `Could not reopen file: ${strerror(error)}`,
  'commit.layer-used': (_, error) => nested('', error),
  'commit.base-small': (_, error) => `Block job failed: ${strerror(error)}`,
  'commit.read': (_, error) => `Block job failed: ${ioError(error)}`,
  'commit.write': (_, error) => `Block job failed: ${ioError(error)}`,
  'rebase.unsupported': ({ to }) => notChanged(to, 'Operation not supported'),
  'rebase.format': ({ format }) => `Invalid format name: '${format}'`,
  'rebase.format-missing': ({ to }) => notChanged(to, 'backing format must be specified'),
  'rebase.loop': ({ name, again }) => ({
    text: `Could not open new backing file '${name}': Failed to get shared "write" lock`,
    hint: `Is another process using the image [${again}]?\n`,
  }),
  'rebase.new-backing': ({ name }, error) => nested(`Could not open new backing file '${name}': `, error),
  'rebase.read': ({ side }) => `error while reading from ${side} backing file`,
  'rebase.write': (_, error) => `Error while writing to COW image: ${strerror(error)}`,
  'rebase.record': ({ to }, error) =>
    notChanged(to, error.code === 'NO_SPACE' ? 'No space left in the file header' : strerror(error)),
  'store.read-only': 'Block node is read-only',
  ...QCOW2_TEXTS,
  ...LUKS_TEXTS,
  ...BITMAP_TEXTS,
  ...FILTER_TEXTS,
  ...BLKDEBUG_TEXTS,
};

/** The reasons that have a sentence of QEMU's. */
export const KNOWN_REASONS: ReadonlySet<string> = new Set(Object.keys(TEXTS));

/** QEMU's words for an error. */
export function qemuText(error: BlockError): QemuText {
  const rule = error.reason === undefined ? undefined : TEXTS[error.reason];
  const found = typeof rule === 'function' ? rule(error.details, error) : rule;
  if (found !== undefined) return typeof found === 'string' ? { text: found } : found;
  if (error.code === 'WRONG_FORMAT' && typeof error.details['format'] === 'string') {
    return { text: `Image is not in ${error.details['format']} format` };
  }
  return { text: fromSystem(error) ?? error.message };
}

/** `could not open "x": no such file or directory` and the like, in QEMU's spelling. */
function fromSystem(error: BlockError): string | undefined {
  if (error.details['errno'] === undefined) return undefined;
  if (error.details['path'] === '' && /^could not (open|look)/.test(error.message)) {
    return "The 'file' block driver requires a file name";
  }
  const match = /^could not (open|create|look at) "(.*)": /s.exec(error.message);
  if (match === null) return undefined;
  const [, doing, name] = match as unknown as [string, string, string];
  return `Could not ${doing === 'create' ? 'create' : 'open'} '${name}': ${strerror(error)}`;
}

function valueText(name: string, kind: unknown): QemuText {
  if (kind === 'bool') return { text: `Parameter '${name}' expects 'on' or 'off'` };
  if (kind === 'int') return { text: `Parameter '${name}' expects a number` };
  return {
    text: `Parameter '${name}' expects a non-negative number below 2^64`,
    hint: 'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.\n',
  };
}

function notChanged(to: unknown, why: string): string {
  return `Could not change the backing file to '${to ?? '(null)'}': ${why}`;
}

function nested(frame: string, error: BlockError): QemuText {
  if (!isBlockError(error.cause)) return { text: frame + strerror(error) };
  const { text, hint } = qemuText(error.cause);
  return { text: frame + text, hint };
}

/** What an I/O error of the image is called: damage found while reading is one, too. */
export function ioError(error: unknown): string {
  return isBlockError(error) && error.details['errno'] === undefined && error.code === 'CORRUPT'
    ? 'Input/output error'
    : strerror(error);
}

/** The C library's text for the errno behind an error. */
export function strerror(error: unknown): string {
  return ERRNO_TEXT[errnoOf(error)] ?? 'Input/output error';
}
