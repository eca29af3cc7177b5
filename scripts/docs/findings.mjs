/** docs/reference/findings.md: everything that audits look for, from the tables of rules. */

/** @param groups what `auditRules` gives */
export function findingsPage(groups) {
  const lines = [
    '# Findings of audits',
    '',
    'Made from the tables of rules; do not edit. What [`cowdisk audit`](../guide/audit.md) looks for; ids and severities do not change.',
    '',
  ];
  for (const { format, rules } of groups) {
    if (rules.length === 0) continue;
    lines.push(`## ${format === undefined ? 'Of several formats' : format}`, '');
    lines.push('| id | severity | meaning | remedy |', '|---|---|---|---|');
    for (const { id, severity, meaning, remedy } of rules) {
      lines.push(`| \`${id}\` | ${severity} | ${cell(meaning)} | ${cell(remedy)} |`);
    }
    lines.push('');
  }
  return `${lines.join('\n').trimEnd()}\n`;
}

function cell(text) {
  return text.replaceAll('|', '\\|');
}
