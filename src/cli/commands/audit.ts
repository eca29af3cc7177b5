/** `audit`: findings, one line each or as JSON. Owns their two forms. */
import { isBlockError } from '../../base/errors.ts';
import { AUDIT_SEVERITIES, type AuditSeverity, shown } from '../../core/audit.ts';
import { type AuditReport, auditImage, isAtLeast } from '../../tools/audit.ts';
import { usage } from '../args.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import type { Command } from '../verbs/index.ts';
import { outputForm, type Scanned, scan } from './common.ts';

const STATUS_FOUND = 2;

export const runAudit: Command = async (cli, args, spec) => {
  const given = await scan(cli, spec, args);
  if (given.operands.length === 0) throw usage('Expecting one or more image file names');
  const form = outputForm(given);
  const threshold = thresholdOf(given);
  const drivers = await loadDrivers(cli.personality, false, given.objects);
  const format = given.value('format');
  const reports: AuditReport[] = [];
  let unread = false;
  for (const name of given.operands) {
    try {
      const report = await auditImage(name, { ...drivers, format, signal: cli.signal });
      reports.push(report);
      if (form === 'human' && !given.has('quiet')) cli.out.write(human(report));
    } catch (error) {
      // The others are to be told all the same.
      if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') throw error;
      cli.error(error.message);
      unread = true;
    }
  }
  if (form === 'json' && !given.has('quiet')) cli.out.write(`${plain(JSON.stringify(reports, undefined, 2))}\n`);
  if (unread) return 1;
  const isBad = ({ worst }: AuditReport) => worst !== undefined && threshold !== 'none' && isAtLeast(worst, threshold);
  return reports.some(isBad) ? STATUS_FOUND : 0;
};

function thresholdOf(given: Scanned): AuditSeverity | 'none' {
  const text = given.value('fail-on') ?? 'medium';
  if (text === 'none') return text;
  const severity = AUDIT_SEVERITIES.find((one) => one === text);
  if (severity !== undefined) return severity;
  throw new Failure(`--fail-on: expected ${AUDIT_SEVERITIES.join(', ')} or none, not '${text}'`);
}

function human({ filename, format, guessed, findings, more }: AuditReport): string {
  const name = shown(filename).slice(1, -1);
  const lines = [`${name}: ${format}${guessed ? ', as nothing else matches' : ''}`];
  if (findings.length === 0) lines.push('  nothing was found');
  for (const { severity, id, message, remedy } of findings) {
    lines.push(`  ${severity.padEnd(6)}  ${id}: ${message}`);
    if (severity !== 'info') lines.push(`          ${remedy}`);
  }
  for (const [id, count] of Object.entries(more)) lines.push(`  and ${count} more of ${id}`);
  return `${lines.join('\n')}\n`;
}

/** JSON escapes what ASCII has of control characters. What else a terminal obeys, or shows as nothing, is escaped here. */
function plain(json: string): string {
  return json.replace(/[\u007f-\u009f\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => {
    const units = Array.from({ length: character.length }, (_, i) => character.charCodeAt(i));
    return units.map((unit) => `\\u${unit.toString(16).padStart(4, '0')}`).join('');
  });
}
