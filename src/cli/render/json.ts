/** JSON as QEMU prints it, over several lines. Pure text work. */
import { type JsonValue, orderedEntries, quote, scalar } from '../../base/json-text.ts';

export { bucketOf, compactJson, type JsonValue, orderedEntries, quote } from '../../base/json-text.ts';

/** The value over several lines, four blanks a level, one line end at its end. */
export function prettyJson(value: JsonValue): string {
  return `${layout(value, '\n')}\n`;
}

function layout(value: JsonValue, newline: string): string {
  const inner = `${newline}    `;
  if (Array.isArray(value)) {
    return `[${value.map((item) => inner + layout(item as JsonValue, inner)).join(',')}${newline}]`;
  }
  if (typeof value === 'object' && value !== null) {
    const members = orderedEntries(value as Record<string, JsonValue>);
    return `{${members.map(([key, member]) => `${inner}${quote(key)}: ${layout(member, inner)}`).join(',')}${newline}}`;
  }
  return scalar(value as string | number | bigint | boolean | null);
}
