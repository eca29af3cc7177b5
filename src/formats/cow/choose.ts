/** Which of several layouts that all fit a file is the likeliest. Pure. Spec: "Detection", T0 to T4.
 *  Invariants: each test keeps those that it speaks for, where it speaks for some and not for all; where two tests point at different layouts
 *  nothing is chosen; T4 chooses only where the other reading is the shifted one it was made for. Better an error than a wrong disk. */
import type { CowHeader } from './header.ts';
import { layoutOf } from './layouts.ts';

export type SoftTest = 'T0' | 'T1' | 'T2' | 'T3' | 'T4';

/** A layout that passes every hard test. */
export interface Contender {
  readonly header: CowHeader;
  /** Size of the backing file it names, bytes; `undefined`: not there, or not to be looked at. */
  readonly backingSize: number | undefined;
}

interface Rule {
  readonly test: SoftTest;
  /** Follows the layout's name, or a colon. */
  readonly text: string;
  speaksFor(contender: Contender, all: readonly Contender[]): boolean;
}

/** 1990 and 2038-01-19, seconds since 1970. */
const EARLIEST = 631_152_000;
const LATEST = 2 ** 31;
/** Bytes. A header read as that of the layout whose size stands 4 bytes further on says at least that, for disks in whole sectors. */
const SHIFTED = 2 ** 41;
const SHIFT = 4;

const notEmpty: Rule = {
  test: 'T0',
  text: 'its disk is not empty',
  speaksFor: ({ header }) => header.size > 0,
};

const backingFits: Rule = {
  test: 'T1',
  text: 'its backing file exists with the recorded size',
  speaksFor: ({ header, backingSize }) => backingSize === header.size,
};

const timeIsPlausible: Rule = {
  test: 'T2',
  text: 'the recorded time of its backing file is plausible',
  speaksFor: ({ header: { layout, mtime, backingName } }) =>
    layoutOf(layout).qemu && backingName === undefined ? mtime === 0 : mtime >= EARLIEST && mtime < LATEST,
};

const isZeroFilled = ({ header: { layout, nameZeroFilled } }: Contender): boolean =>
  layoutOf(layout).qemu && nameZeroFilled;

/** QEMU clears the field, always; what follows the NUL in UML's is chance. */
const nameIsFilled: Rule = {
  test: 'T3',
  text: 'the name of its backing file is filled up as that writer does',
  speaksFor: (contender, all) =>
    all.some(isZeroFilled) ? isZeroFilled(contender) : !layoutOf(contender.header.layout).qemu,
};

/** The smallest disk, where the others are what a shifted reading makes of it. The other way round nothing passes the hard tests but by chance,
 *  so a smallest disk that the others are no shift of proves nothing. */
const isNotShifted: Rule = {
  test: 'T4',
  text: 'its disk is the smallest',
  speaksFor: (contender, all) =>
    contender.header.size < SHIFTED &&
    all.every((other) => other === contender || (other.header.size >= SHIFTED && isShiftOf(other, contender))),
};

function isShiftOf({ header: shifted }: Contender, { header: straight }: Contender): boolean {
  return layoutOf(shifted.layout).sizeAt === layoutOf(straight.layout).sizeAt + SHIFT;
}

const RULES: readonly Rule[] = [notEmpty, backingFits, timeIsPlausible, nameIsFilled, isNotShifted];

export interface Choice<C extends Contender> {
  readonly chosen: C;
  readonly test: SoftTest;
  readonly why: string;
}

/** @param contenders two or more. @returns `undefined`: nothing tells them apart. */
export function choose<C extends Contender>(contenders: readonly C[]): Choice<C> | undefined {
  let left = contenders;
  for (const rule of RULES) {
    const kept = keptBy(rule, left);
    if (rule === timeIsPlausible && !kept.some((contender) => keptBy(nameIsFilled, left).includes(contender))) {
      return undefined;
    }
    left = kept;
    const [chosen, second] = left;
    if (chosen !== undefined && second === undefined) return { chosen, test: rule.test, why: rule.text };
  }
  return undefined;
}

/** All of them when the rule speaks for none. */
function keptBy<C extends Contender>(rule: Rule, all: readonly C[]): readonly C[] {
  const kept = all.filter((contender) => rule.speaksFor(contender, all));
  return kept.length === 0 ? all : kept;
}

/** What speaks for one of them, in words. */
export function speakingFor(contender: Contender, all: readonly Contender[]): string[] {
  return RULES.filter((rule) => rule.speaksFor(contender, all)).map((rule) => rule.text);
}
