/** One layout against one file: the hard tests in their order, the bitmap last. Spec: "Detection", H1 to H7. */
import { BlockError, hex } from '../../base/errors.ts';
import { highestBit } from './bitmap-scan.ts';
import type { DetectInput } from './detection.ts';
import { type CowHeader, decodeCowHeader } from './header.ts';
import { type Finding, headerFindings, identify, lengthFindings } from './header-tests.ts';
import { type CowGeometry, type CowLayout, geometryOf } from './layouts.ts';

/** A layout under examination. */
export interface Reading {
  readonly layout: CowLayout;
  readonly header: CowHeader;
  readonly geometry: CowGeometry;
  readonly highestBit: number;
}
/** One that passes them all, or what it fails. */
export type Examined = Reading | { readonly layout: CowLayout; readonly header?: CowHeader; readonly finding: Finding };

export const passes = (examined: Examined): examined is Reading => !('finding' in examined);

/** @throws {@link BlockError} WRONG_FORMAT, `cow.magic`; UNSUPPORTED, `cow.version`, details `{ version }`. */
export function identified({ head, name }: DetectInput): readonly CowLayout[] {
  const layouts = identify(head);
  if (layouts === 'magic') {
    throw new BlockError('WRONG_FORMAT', `cow "${name}": not a cow image: the magic bytes are missing`, {
      reason: 'cow.magic',
    });
  }
  if (typeof layouts === 'number') {
    throw new BlockError('UNSUPPORTED', `cow "${name}": version ${layouts}; 1, 2 and 3 are known`, {
      reason: 'cow.version',
      details: { version: layouts },
    });
  }
  return layouts;
}

/** The hard tests, in order, up to the first that fails. */
export async function examine(layout: CowLayout, input: DetectInput): Promise<Examined> {
  const { head, fileSize } = input;
  if (head.length < layout.headerSize) {
    return { layout, finding: { test: 'H6', text: `the file ends inside the header of ${layout.headerSize} bytes` } };
  }
  const header = decodeCowHeader(layout.id, head, input.name);
  const [wrong] = headerFindings(header);
  if (wrong !== undefined) return { layout, header, finding: wrong };
  const geometry = geometryOf(layout, header);
  const [tooLong] = lengthFindings(header, geometry, fileSize);
  if (tooLong !== undefined) return { layout, header, finding: tooLong };
  const highest = await scanBitmap(layout, geometry, input);
  const finding = bitmapFinding(highest, header, geometry, fileSize);
  return finding === undefined ? { layout, header, geometry, highestBit: highest } : { layout, header, finding };
}

/** The part of the bitmap that the file has. */
export function scanBitmap(
  layout: CowLayout,
  geometry: CowGeometry,
  { file, fileSize, signal }: DetectInput,
): Promise<number> {
  const { bitmapOffset, bitmapLength } = geometry;
  const length = Math.max(0, Math.min(bitmapLength, fileSize - bitmapOffset));
  return highestBit(file, { offset: bitmapOffset, length, wordBytes: layout.wordBytes }, signal);
}

/** H7: bits are of sectors that exist, and data are written before their bit. */
export function bitmapFinding(
  highest: number,
  { sectorSize }: CowHeader,
  { sectors, dataOffset }: CowGeometry,
  fileSize: number,
): Finding | undefined {
  if (highest < 0) return undefined;
  if (highest >= sectors) return { test: 'H7', text: `the bitmap claims sector ${highest} of ${sectors}` };
  const at = dataOffset + highest * sectorSize;
  if (at < fileSize) return undefined;
  return {
    test: 'H7',
    text: `the bitmap claims sector ${highest} at ${hex(at)}, the file ends at ${hex(fileSize)}`,
  };
}
