/** raw: the file's bytes are the disk's bytes. Owns the window (`offset`, `size`), rounding to sectors, creation and resize.
 *  Invariants: the virtual size is a multiple of 512; reads past the end of the file are zeros (by the store's contract);
 *  with a `size` window nothing outside it is touched. */
import { BlockError } from '../../base/errors.ts';
import { choice, defineOptions, type OptionsOf, size } from '../../base/options.ts';
import { alignUp } from '../../bytes/align.ts';
import { type CreateContext, defineFormat, type Measurement, type OpenContext } from '../../core/format.ts';
import type { BlockNode } from '../../core/node.ts';
import { rawAuditor } from './audit.ts';
import { RawNode } from './raw-node.ts';

const SECTOR = 512;

const openOptions = defineOptions({
  offset: size({ default: 0, content: true, help: 'where the disk begins in the file' }),
  size: size({ content: true, help: 'bytes of the disk; to the end of the file when not given' }),
});

const createOptions = defineOptions({
  size: size({ help: 'Virtual disk size' }),
  preallocation: choice(['off', 'metadata', 'falloc', 'full'], {
    default: 'off',
    help: 'Preallocation mode (allowed values: off, falloc, full)',
  }),
});

async function open(context: OpenContext, options: OptionsOf<typeof openOptions>): Promise<RawNode> {
  const { file, name } = context;
  const { offset, size: window } = options;
  // A pipe has no size before it is written.
  if (file.supports.access === 'forward') return new RawNode(file, name, context.readOnly, offset, window);
  if (offset > file.size || (window !== undefined && window > file.size - offset)) {
    throw new BlockError(
      'OPTION',
      `raw "${name}": offset ${offset} and size ${window ?? 0} pass the end of the file, ${file.size}`,
      { reason: 'raw.window', details: { offset, size: window ?? 0, fileSize: file.size } },
    );
  }
  if (window !== undefined && window % SECTOR !== 0) {
    throw new BlockError('OPTION', `raw "${name}": size ${window} is not a multiple of ${SECTOR}`, {
      reason: 'raw.window-size',
      details: { size: window },
    });
  }
  return new RawNode(file, name, context.readOnly, offset, window);
}

async function create(
  context: CreateContext,
  virtualSize: number,
  options: OptionsOf<typeof createOptions>,
): Promise<void> {
  const { file, name } = context;
  const fileSize = alignUp(virtualSize, SECTOR);
  const { preallocation } = options;
  if (preallocation === 'metadata') {
    throw new BlockError('OPTION', `raw "${name}": preallocation mode 'metadata' is not possible`, {
      reason: 'raw.preallocation',
      details: { mode: preallocation },
    });
  }
  if (file.supports.access === 'forward') return;
  if (file.supports.truncate) {
    await file.truncate(fileSize, {
      preallocation,
      ...(context.signal === undefined ? {} : { signal: context.signal }),
    });
  } else if (file.size < fileSize) {
    throw new BlockError('TOO_LARGE', `raw "${name}": the device has ${file.size} bytes, the disk needs ${fileSize}`, {
      reason: 'raw.device-small',
      details: { size: fileSize, deviceSize: file.size },
    });
  }
}

async function measure(
  virtualSize: number,
  _options: OptionsOf<typeof createOptions>,
  _source?: BlockNode,
): Promise<Measurement> {
  const bytes = alignUp(virtualSize, SECTOR);
  return { required: bytes, fullyAllocated: bytes };
}

export const raw = defineFormat({
  name: 'raw',
  summary: 'plain disk contents',
  extensions: ['raw', 'img', 'iso', 'bin'],
  capabilities: {
    create: true,
    write: true,
    backing: false,
    compress: false,
    check: false,
    zeroInit: true,
    fileUse: 'passes',
    resize: true,
  },
  openOptions,
  createOptions,
  // Everything can be raw, so this is the answer only when no other format matches.
  probe: () => 1,
  open,
  create,
  measure,
  auditor: rawAuditor,
  forward: { kind: 'data-follows' },
});
