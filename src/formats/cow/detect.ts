/** Which layout a cow file has, and why. Spec: "Detection", with its "Known failure cases".
 *  Invariants: nothing of the image is believed before it is checked; reads the head it is given and the bitmaps of the layouts that fit, in
 *  bounded memory; when nothing tells two layouts apart the answer is an error, never a guess; a layout that is named always wins. */
import { BlockError } from '../../base/errors.ts';
import { choose, speakingFor } from './choose.ts';
import {
  type CowCandidate,
  type CowDetection,
  type DetectInput,
  describeCandidate,
  detection,
  overlayWarnings,
} from './detection.ts';
import { type Examined, examine, identified, passes, type Reading } from './examine.ts';
import { identify } from './header-tests.ts';
import type { CowLayout } from './layouts.ts';
import { overlaysOf, unlikelier } from './overlay.ts';

export type { CowCandidate, CowDetection, DetectInput } from './detection.ts';
export { explicitCow } from './explicit.ts';

/** 90 when magic and version are those of a cow file that is long enough for its header, else 0. Pure. */
export function probeCow(head: Uint8Array, fileSize: number): number {
  const layouts = identify(head);
  if (typeof layouts === 'string' || typeof layouts === 'number') return 0;
  return layouts.some(({ headerSize }) => headerSize <= fileSize) ? 90 : 0;
}

/** Finds the layout of a file.
 *  @throws {@link BlockError} WRONG_FORMAT, reasons `cow.magic`, `cow.no-layout`, `cow.ambiguous` (the last two with details
 *  `{ candidates }`); UNSUPPORTED, `cow.version`; ABORTED; what `file` and `backingStatus` throw. */
export async function detectCow(input: DetectInput): Promise<CowDetection> {
  const examined: Examined[] = [];
  for (const layout of identified(input)) examined.push(...(await examineWithOverlays(layout, input)));
  const fitting = examined.filter(passes);
  const [first, second] = fitting;
  if (first === undefined)
    throw nothingFits(
      input.name,
      examined.map((one) => describeCandidate(one)),
    );
  if (second === undefined) {
    return detection(
      first,
      'the only layout that fits the file',
      examined.map((one) => describeCandidate(one)),
      overlayWarnings(first.layout),
    );
  }
  return await chooseAmong(fitting, examined, input);
}

async function chooseAmong(
  fitting: readonly Reading[],
  examined: readonly Examined[],
  input: DetectInput,
): Promise<CowDetection> {
  const sizes = await backingSizes(fitting, input);
  const contenders = fitting.map((reading) => ({
    header: reading.header,
    backingSize: sizes.get(reading.header.backingName),
    reading,
  }));
  const candidates = examined.map((one) => {
    const contender = contenders.find(({ reading }) => reading === one);
    return contender === undefined
      ? describeCandidate(one)
      : describeCandidate(one, speakingFor(contender, contenders));
  });
  const choice = choose(contenders);
  if (choice === undefined) throw ambiguous(input.name, candidates);
  const { chosen, test, why } = choice;
  const warnings = overlayWarnings(chosen.reading.layout);
  // The backing file is proof; the rest is likelihood.
  if (test !== 'T1') {
    const others = fitting.filter((reading) => reading !== chosen.reading).map(({ layout }) => layout.id);
    warnings.push(
      `taken for layout ${chosen.reading.layout.id}, because ${why}; ${others.join(', ')} would fit as well`,
    );
  }
  return detection(chosen.reading, why, candidates, warnings);
}

async function backingSizes(
  fitting: readonly Reading[],
  input: DetectInput,
): Promise<ReadonlyMap<string | undefined, number>> {
  const sizes = new Map<string | undefined, number>();
  for (const name of new Set(fitting.map(({ header }) => header.backingName))) {
    const status = name === undefined ? undefined : await input.backingStatus(name);
    if (status !== undefined) sizes.set(name, status.size);
  }
  return sizes;
}

/** Reads the file as `layout`, and as what its header may hide. */
async function examineWithOverlays(layout: CowLayout, input: DetectInput): Promise<Examined[]> {
  const plain = await examine(layout, input);
  if (plain.header === undefined) return [plain];
  // What no header of that layout may say, no overlay says either.
  if (!passes(plain) && plain.finding.test !== 'H6' && plain.finding.test !== 'H7') return [plain];
  const hidden: Examined[] = [];
  for (const overlay of overlaysOf(plain.header)) hidden.push(await examine(overlay, input));
  return settleOverlays(plain, hidden, input);
}

/** Where a header and what it may hide both fit, one of them is struck out if there is a sign. */
function settleOverlays(plain: Examined, hidden: readonly Examined[], { head, fileSize }: DetectInput): Examined[] {
  let settled = plain;
  const results = hidden.map((one) => {
    const body = one.layout.overlay?.body;
    if (body === undefined || !passes(plain) || !passes(one)) return one;
    const drop = unlikelier(plain, one, body, head, fileSize);
    if (drop === 'plain') settled = struckOut(plain, `there are signs of an older body of layout ${body}`);
    return drop === 'overlay' ? struckOut(one, `there is no sign of a body of layout ${body}`) : one;
  });
  return [settled, ...results];
}

function struckOut({ layout, header }: Reading, text: string): Examined {
  return { layout, header, finding: { test: 'H7', text } };
}

function nothingFits(name: string, candidates: readonly CowCandidate[]): BlockError {
  const told = candidates.map(({ layout, failedTest, failure }) => `${layout}: ${failure} (${failedTest})`);
  return new BlockError(
    'WRONG_FORMAT',
    `cow "${name}": damaged, or of a layout that is not known: ${told.join('; ')}; to read it all the same, name one with option layout`,
    { reason: 'cow.no-layout', details: { candidates } },
  );
}

function ambiguous(name: string, candidates: readonly CowCandidate[]): BlockError {
  const told = candidates.map(({ layout, size, passed, failedTest, failure, speaksFor }) => {
    if (!passed) return `${layout} does not: ${failure} (${failedTest})`;
    const pro = speaksFor.length === 0 ? 'nothing speaks for it' : speaksFor.join(', ');
    return `${layout}, a disk of ${size} bytes: ${pro}`;
  });
  return new BlockError(
    'WRONG_FORMAT',
    `cow "${name}": more than one layout fits: ${told.join('; ')}; name one with option layout`,
    { reason: 'cow.ambiguous', details: { candidates } },
  );
}
