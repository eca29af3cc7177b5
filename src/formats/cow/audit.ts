/** The audit of cow images: what the header names and says under every layout that it may have, and space that holds nothing. Spec: "Header offset
 *  tables", "Detection". The backing file is neither opened nor looked at, so that its size decides nothing here.
 *  Invariant: names are told even where no layout fits: another reader may be less strict. */
import { type AuditContext, type AuditFacet, readBytes } from '../../core/audit.ts';
import { AUDIT, auditHeader, auditReference, auditRule, auditSize, auditSlack } from '../../core/audit-rules.ts';
import { type CowDetection, type DetectInput, detectCow } from './detect.ts';
import { type CowHeader, decodeCowHeader } from './header.ts';
import { bitmapSpillEnd, headerFindings, identify } from './header-tests.ts';
import { type CowLayout, geometryOf, layoutOf } from './layouts.ts';

const COW = {
  ambiguous: auditRule(
    'cow.ambiguous',
    'medium',
    'More than one layout fits the file: programs for different layouts show different disks.',
    'name the layout (`--cow-layout`) wherever the image is read, and convert it to another format',
  ),
  time: auditRule(
    'cow.backing-time',
    'info',
    'The header records when the backing file was last changed.',
    'set another time (`cowdisk rebase`) before you give the image away, if that must not be known',
  ),
} as const;

const HEAD_BYTES = 8192;
/** Longer bitmaps are not read. */
const MOST_BITMAP = 2 ** 30;
const isLong = (fileSize: number, bitmap: number): boolean => bitmap > MOST_BITMAP && bitmap < fileSize;

async function audit(context: AuditContext): Promise<void> {
  const { file, name, signal } = context;
  const head = await readBytes(file, 0, Math.min(HEAD_BYTES, file.size));
  const identified = identify(head);
  const layouts = (typeof identified === 'object' ? identified : []).filter(
    ({ headerSize }) => headerSize <= head.length,
  );
  // Those first that leave the format of the backing file open: of equal names one is told.
  layouts.sort((a, b) => Number(b.qemu) - Number(a.qemu));
  const input: DetectInput = {
    ...{ name, head, fileSize: file.size, file },
    backingStatus: async () => undefined,
    ...(signal === undefined ? {} : { signal }),
  };
  const long = layouts.find((layout) => isLong(file.size, bitmapOf(layout, decodeCowHeader(layout.id, head))));
  if (long !== undefined) context.book.add(AUDIT.tables, { offset: 0 }, 'the bitmap is longer than 1 GiB');
  const detection = long === undefined ? await auditHeader(context, () => detectCow(input)) : undefined;
  const headers = detection === undefined ? layouts.map(({ id }) => decodeCowHeader(id, head)) : [detection.header];
  auditNames(context, headers);
  for (const { layout, size } of headers) auditSize(context, size, { offset: layoutOf(layout).sizeAt, field: 'size' });
  if (detection !== undefined) await auditParts(context, detection);
}

/** Of headers that make sense as far as that. */
function bitmapOf(layout: CowLayout, header: CowHeader): number {
  return headerFindings(header).some(({ blocking }) => blocking !== undefined)
    ? 0
    : geometryOf(layout, header).bitmapLength;
}

function auditNames(context: AuditContext, headers: readonly CowHeader[]): void {
  const told = new Set<string>();
  for (const { layout, backingName, backingNameBytes } of headers) {
    if (backingName === undefined || told.has(backingName)) continue;
    told.add(backingName);
    const { nameAt, qemu } = layoutOf(layout);
    auditReference(context, {
      ...{ what: 'backing file', name: backingName, bytes: backingNameBytes, offset: nameAt, field: 'backing file' },
      // UML takes every backing file for a raw disk.
      format: qemu ? undefined : 'raw',
      probed: true,
    });
  }
}

async function auditParts(context: AuditContext, detection: CowDetection): Promise<void> {
  const { book } = context;
  const { header, geometry, candidates, layout } = detection;
  const { headerSize, mtimeAt } = layoutOf(layout);
  const fitting = candidates.filter(({ passed }) => passed).map((candidate) => candidate.layout);
  if (fitting.length > 1) {
    book.add(COW.ambiguous, { offset: 0, value: fitting.join(' ') }, `layouts ${fitting.join(', ')} fit the file`);
  }
  if (header.mtime !== 0) {
    book.add(
      COW.time,
      { offset: mtimeAt, field: 'mtime', value: header.mtime },
      `records ${header.mtime} seconds since 1970 as the time of its backing file`,
    );
  }
  const { bitmapOffset, dataOffset } = geometry;
  await auditSlack(context, 'between header and bitmap', headerSize, bitmapOffset);
  await auditSlack(context, 'between bitmap and data', bitmapSpillEnd(geometry), dataOffset);
}

export const cowAuditor: AuditFacet = { rules: Object.values(COW), audit };
