/** How findings are told: for people, and one JSON object per line for programs. Owns the texts. */
import { describeDamage } from '../../tools/fuzz/damage.ts';
import { factsOf } from './keep.ts';
import type { Finding, FuzzResult } from './session.ts';
import { quoted } from './template.ts';

/** Damages that people are shown. */
const SHOWN = 8;

export function findingText(finding: Finding, kept: string | undefined): string {
  const { seed, verdict, command, features, damages, drawn, subject } = finding;
  const lines = [
    `${subject.format} seed ${seed}: ${verdict.kind}: ${verdict.reason}`,
    `  command: ${command.text}`,
    `  image: ${features.join(', ')}`,
    ...damages.slice(0, SHOWN).map((damage) => `  damage: ${describeDamage(damage)}`),
    ...(damages.length > SHOWN ? [`  damage: and ${damages.length - SHOWN} more`] : []),
    ...(damages.length < drawn ? [`  damage: ${drawn} at first, shrunk to ${damages.length}`] : []),
    ...(kept === undefined ? [] : [`  kept; again: cowdisk fuzz --replay ${quoted(kept)}`]),
  ];
  return `${lines.join('\n')}\n`;
}

export function findingLine(finding: Finding, kept: string | undefined): string {
  return line({ event: 'finding', ...factsOf(finding), kept });
}

export function summaryText({ images, runs, findings, interrupted }: FuzzResult): string {
  const times = [...findings.values()].reduce((sum, count) => sum + count, 0);
  const found =
    findings.size === 0
      ? 'nothing found'
      : `${counted(findings.size, 'finding')}, met ${times === 1 ? 'once' : `${times} times`}`;
  return `${counted(images, 'image')}, ${counted(runs, 'run')}: ${found}${interrupted ? '; interrupted' : ''}\n`;
}

export function summaryLine({ images, runs, findings, interrupted }: FuzzResult): string {
  const met = [...findings].map(([signature, times]) => ({ signature, times }));
  return line({ event: 'summary', images, runs, interrupted, findings: met });
}

export function line(value: object): string {
  return `${JSON.stringify(value)}\n`;
}

function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}
