/** Reading a cow file as the layout that somebody names. Spec: "Detection", last paragraph.
 *  Invariant: what is answered can be read by: areas do not overlap and end below 2^53. */
import { BlockError, hex } from '../../base/errors.ts';
import { type CowDetection, type DetectInput, describeCandidate, detection, overlayWarnings } from './detection.ts';
import { bitmapFinding, identified, scanBitmap } from './examine.ts';
import { type CowHeader, decodeCowHeader } from './header.ts';
import { headerFindings, lengthFindings } from './header-tests.ts';
import { type CowGeometry, type CowLayout, type CowLayoutId, geometryOf, layoutOf, QEMU_SECTOR } from './layouts.ts';

/** Reads the file as the layout that is named, whatever it looks like. What detection would refuse it for becomes a warning, as long as it can
 *  be read at all.
 *  @param at where bitmap and data begin, for files whose header does not say so.
 *  @throws {@link BlockError} WRONG_FORMAT and UNSUPPORTED as {@link detectCow}, and WRONG_FORMAT `cow.other-version` when magic and version
 *  are those of other layouts; CORRUPT, `cow.header-short`, `cow.sector-size`, `cow.alignment`; TOO_LARGE, `cow.size`, `cow.offsets`;
 *  OPTION, `cow.overlap`; ABORTED; what `file` throws. */
export async function explicitCow(
  id: CowLayoutId,
  input: DetectInput,
  at: { readonly bitmapOffset?: number; readonly dataOffset?: number } = {},
): Promise<CowDetection> {
  const { name, fileSize } = input;
  const layout = layoutOf(id);
  const looksLike = identified(input).map((one) => one.id);
  if (!looksLike.includes(layout.overlay?.header ?? id)) {
    throw new BlockError('WRONG_FORMAT', `cow "${name}": not of layout ${id}: it begins like ${looksLike.join(', ')}`, {
      reason: 'cow.other-version',
      details: { layout: id, looksLike },
    });
  }
  const recorded = decodeCowHeader(id, input.head, name);
  const findings = headerFindings(recorded);
  for (const { text, blocking } of findings) {
    if (blocking === undefined) continue;
    throw new BlockError(blocking.code, `cow "${name}": cannot be read as layout ${id}: ${text}`, {
      reason: blocking.reason,
      details: { layout: id },
    });
  }
  const header = effective(layout, recorded);
  const geometry = geometryOf(layout, header, at);
  checkAreas(layout, header, geometry, name);
  findings.push(...lengthFindings(header, geometry, fileSize));
  const wrongBit = bitmapFinding(await scanBitmap(layout, geometry, input), header, geometry, fileSize);
  if (wrongBit !== undefined) findings.push(wrongBit);
  const warnings = findings.map(({ text }) => text);
  if (Math.min(geometry.bitmapOffset, geometry.dataOffset) < layout.headerSize) {
    warnings.push(`bitmap or data begin inside the header of ${layout.headerSize} bytes`);
  }
  warnings.push(...overlayWarnings(layout));
  const [finding] = findings;
  const candidate = describeCandidate({ layout, header: recorded, ...(finding === undefined ? {} : { finding }) });
  return detection({ layout, header, geometry }, 'named by the option layout', [candidate], warnings);
}

/** QEMU counts in sectors of 512 bytes and whole ones. */
function effective({ qemu }: CowLayout, header: CowHeader): CowHeader {
  return qemu ? { ...header, sectorSize: QEMU_SECTOR, size: header.size - (header.size % QEMU_SECTOR) } : header;
}

function checkAreas(layout: CowLayout, { sectorSize }: CowHeader, geometry: CowGeometry, name: string): void {
  const { bitmapOffset, bitmapLength, dataOffset, sectors } = geometry;
  const bitmapEnd = bitmapOffset + bitmapLength;
  const dataEnd = dataOffset + sectors * sectorSize;
  if (!Number.isSafeInteger(bitmapEnd) || !Number.isSafeInteger(dataEnd)) {
    throw new BlockError('TOO_LARGE', `cow "${name}": bitmap or data end above 2^53-1`, {
      reason: 'cow.offsets',
      details: { layout: layout.id, bitmapOffset, dataOffset },
    });
  }
  if (bitmapLength > 0 && bitmapOffset < dataEnd && dataOffset < bitmapEnd) {
    throw new BlockError(
      'OPTION',
      `cow "${name}": bitmap (${hex(bitmapOffset)} to ${hex(bitmapEnd)}) and data (${hex(dataOffset)} to ${hex(dataEnd)}) overlap`,
      { reason: 'cow.overlap', details: { layout: layout.id, bitmapOffset, bitmapEnd, dataOffset, dataEnd } },
    );
  }
}
