/** cow, the format of User Mode Linux and of old QEMUs, in all its layouts: the driver. Spec: all of it.
 *  Owns the order of opening: header and layout, tail rule, backing file, and whether it may be written over.
 *  Invariant: probing is pure; which layout it is, is found out at opening, or given. */
import { BlockError, hex, isBlockError } from '../../base/errors.ts';
import type { OptionsOf } from '../../base/options.ts';
import { lowBits } from '../../bytes/bits.ts';
import { defineFormat, type OpenContext, type ReferenceStatus, wantedBacking } from '../../core/format.ts';
import { requireKnownSize } from '../../core/store.ts';
import { cowAuditor } from './audit.ts';
import { backingFacts, mismatchError, mismatches } from './backing-facts.ts';
import { createCow } from './create.ts';
import { type CowDetection, type DetectInput, detectCow, explicitCow, probeCow } from './detect.ts';
import { layoutOf } from './layouts.ts';
import { measureCow } from './measure.ts';
import { CowNode } from './node.ts';
import { createOptions, openOptions } from './options.ts';
import { planCowForward } from './write-forward.ts';

/** Longest header, and what lies around it. */
const HEAD_BYTES = 8192;

type OpenOptions = OptionsOf<typeof openOptions>;

/** @throws {@link BlockError} WRONG_FORMAT `cow.no-layout`, `cow.ambiguous`; OPTION `cow.offsets-need-layout`, `cow.bitmap-offset`,
 *  `cow.offsets-header`, `cow.tail-write`; INVALID_ARGUMENT `cow.mismatch`; UNSUPPORTED and CORRUPT for what the header says; as `openReference`. */
async function open(context: OpenContext, options: OpenOptions): Promise<CowNode> {
  const detection = await detect(context, options);
  requireUsable(context, detection);
  for (const message of detection.warnings) warn(context, 'cow.header', message);
  const tail = await tailOf(context, detection, options);
  const { header } = detection;
  const { backingName: name } = header;
  // UML never looks into its backing files; QEMU does.
  const format = layoutOf(header.layout).qemu ? undefined : 'raw';
  const recorded = name === undefined ? undefined : ({ role: 'backing', name, format, readOnly: true } as const);
  const wanted = wantedBacking(context, recorded);
  const backingStatus = wanted === undefined ? undefined : await statusOf(context, wanted.name);
  if (wanted !== undefined) compare(context, detection, backingStatus, options);
  const backing = wanted === undefined ? undefined : await context.openReference(wanted);
  return new CowNode({ context, detection, backing, backingStatus, ignoreMismatch: options.ignoreMismatch, ...tail });
}

async function detect(context: OpenContext, options: OpenOptions): Promise<CowDetection> {
  const { file, name, signal } = context;
  requireKnownSize(file);
  const head = new Uint8Array(Math.min(HEAD_BYTES, file.size));
  await file.read(0, head);
  const input: DetectInput = {
    name,
    head,
    fileSize: file.size,
    file,
    backingStatus: async (backing) => {
      const status = await statusOf(context, backing);
      return status?.size === undefined ? undefined : { size: status.size, modifiedSeconds: status.modifiedSeconds };
    },
    ...(signal === undefined ? {} : { signal }),
  };
  const { layout, bitmapOffset, dataOffset } = options;
  if (layout !== undefined) {
    return await explicitCow(layout, input, {
      ...(bitmapOffset === undefined ? {} : { bitmapOffset }),
      ...(dataOffset === undefined ? {} : { dataOffset }),
    });
  }
  if (bitmapOffset !== undefined || dataOffset !== undefined) {
    throw new BlockError('OPTION', `cow "${name}": bitmap-offset and data-offset mean nothing without layout`, {
      reason: 'cow.offsets-need-layout',
    });
  }
  return await detectCow(input);
}

/** Offsets that somebody gives may be good enough to look at a file, and still be none to write by. */
function requireUsable({ name, readOnly }: OpenContext, { layout, geometry }: CowDetection): void {
  const { bitmapOffset, dataOffset } = geometry;
  const { wordBytes, headerSize } = layoutOf(layout);
  if (bitmapOffset % wordBytes !== 0) {
    throw new BlockError(
      'OPTION',
      `cow "${name}": the bitmap of layout ${layout} is made of words of ${wordBytes} bytes, and ${hex(bitmapOffset)} is no multiple of that`,
      { reason: 'cow.bitmap-offset', details: { layout, bitmapOffset, wordBytes } },
    );
  }
  if (!readOnly && Math.min(bitmapOffset, dataOffset) < headerSize) {
    throw new BlockError(
      'OPTION',
      `cow "${name}": bitmap (${hex(bitmapOffset)}) or data (${hex(dataOffset)}) begin inside the header of ${headerSize} bytes, which writing would destroy`,
      { reason: 'cow.offsets-header', details: { layout, bitmapOffset, dataOffset, headerSize } },
    );
  }
}

/** A name that a wrong guess finds in the middle of a bitmap may be anything. */
async function statusOf(context: OpenContext, backing: string): Promise<ReferenceStatus | undefined> {
  try {
    return await context.referenceStatus({ role: 'backing', name: backing, readOnly: true });
  } catch (error) {
    if (isBlockError(error) && error.code !== 'ABORTED' && error.code !== 'INTERNAL') return undefined;
    throw error;
  }
}

/** How many bits count. Old layouts round the length of their bitmap down, so that up to seven last sectors have no bit of their own.
 *  Spec: "The rounding bug". */
async function tailOf(
  context: OpenContext,
  { header, geometry }: CowDetection,
  options: OpenOptions,
): Promise<{ readonly bits: number; readonly bitmapLength: number }> {
  const { bitmapOffset, bitmapLength, dataOffset, sectors, storedBits } = geometry;
  const strict = { bits: storedBits, bitmapLength };
  const behind = bitmapOffset + bitmapLength;
  if (storedBits === sectors || layoutOf(header.layout).wordBytes > 1 || behind >= dataOffset) return strict;
  if (options.tail === 'lenient') {
    if (context.readOnly) return { bits: sectors, bitmapLength: bitmapLength + 1 };
    throw new BlockError('OPTION', `cow "${context.name}": tail=lenient is for reading; convert the image instead`, {
      reason: 'cow.tail-write',
    });
  }
  const byte = new Uint8Array(1);
  await context.file.read(behind, byte);
  const claimed = lowBits(byte[0] as number, sectors - storedBits);
  if (claimed !== 0) {
    warn(
      context,
      'cow.tail',
      `the last ${sectors - storedBits} sectors have no place in the bitmap of layout ${header.layout}, and the byte behind it at ${hex(behind)} claims some of them; it may be garbage and is ignored (tail=lenient believes it)`,
    );
  }
  return strict;
}

/** Another base than the one recorded: a warning for readers, an end for writers. */
function compare(
  context: OpenContext,
  { header }: CowDetection,
  status: ReferenceStatus | undefined,
  options: OpenOptions,
): void {
  const facts = backingFacts(header, status);
  const found = mismatches(facts);
  if (found.length === 0 || context.forCheck || context.metadataOnly === true) return;
  if (!context.readOnly && !options.ignoreMismatch) {
    throw mismatchError(context.name, header.backingName ?? '', facts);
  }
  warn(
    context,
    'cow.mismatch',
    `backing file "${facts.file ?? header.backingName}" is not as recorded: ${found.join('; ')}`,
  );
}

function warn(context: OpenContext, reason: string, message: string): void {
  context.report({ type: 'warning', node: context.name, reason, message: `cow "${context.name}": ${message}` });
}

export const cow = defineFormat({
  name: 'cow',
  summary: 'User Mode Linux copy-on-write, all layouts, and that of QEMU before 2.2',
  extensions: ['cow'],
  capabilities: { create: true, write: true, backing: true, compress: false, check: true, zeroInit: true },
  openOptions,
  createOptions,
  probe: ({ head, fileSize }) => probeCow(head, fileSize),
  open,
  create: createCow,
  measure: measureCow,
  auditor: cowAuditor,
  forward: { kind: 'tables', accepts: () => true, plan: planCowForward },
});
