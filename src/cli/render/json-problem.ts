/** QEMU's words for the commonest mistakes in JSON texts. */

/** @param text of which a JSON parser found that it is none */
export function jsonProblem(text: string): string {
  const keyword = /(?:^|[{[:,])\s*([a-zA-Z]+)/.exec(text)?.[1];
  if (keyword !== undefined && !['true', 'false', 'null'].includes(keyword)) return `invalid keyword '${keyword}'`;
  const open = (text.match(/[{[]/g) ?? []).length - (text.match(/[}\]]/g) ?? []).length;
  if (open > 0) return 'premature EOI';
  return 'expecting value';
}
