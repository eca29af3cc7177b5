/** JSON as QEMU has it in names and messages: its order of keys, its escapes. Pure text work.
 *  Invariant: the order of keys depends on the keys alone (a hash), and for keys of one bucket on which was added last. */

/** What can be printed. `undefined` members are left out. */
export type JsonValue =
  | string
  | number
  | bigint
  | boolean
  | null
  | readonly JsonValue[]
  | { readonly [key: string]: JsonValue | undefined };

const BUCKETS = 512;

/** The bucket of a key in QEMU's dictionary: the hash of tdb, modulo 512. */
export function bucketOf(key: string): number {
  const bytes = new TextEncoder().encode(key);
  let value = Math.imul(0x238f13af, bytes.length) >>> 0;
  bytes.forEach((byte, i) => {
    value = (value + (byte << ((i * 5) % 24))) >>> 0;
  });
  return ((Math.imul(1103515243, value) + 12345) >>> 0) % BUCKETS;
}

/** The members of an object in QEMU's order; `undefined` ones left out. */
export function orderedEntries(
  object: Readonly<Record<string, JsonValue | undefined>>,
): [key: string, value: JsonValue][] {
  return Object.entries(object)
    .filter((entry): entry is [string, JsonValue] => entry[1] !== undefined)
    .map((entry, i) => ({ entry, bucket: bucketOf(entry[0]), i }))
    .sort((a, b) => a.bucket - b.bucket || b.i - a.i)
    .map(({ entry }) => entry);
}

/** The value on one line, `, ` and `: ` between, as `json:{}` file names show it. */
export function compactJson(value: JsonValue): string {
  if (Array.isArray(value)) return `[${value.map(compactJson).join(', ')}]`;
  if (typeof value === 'object' && value !== null) {
    const members = orderedEntries(value as Record<string, JsonValue>);
    return `{${members.map(([key, member]) => `${quote(key)}: ${compactJson(member)}`).join(', ')}}`;
  }
  return scalar(value as string | number | bigint | boolean | null);
}

/** A value that has no members. */
export function scalar(value: string | number | bigint | boolean | null): string {
  return typeof value === 'string' ? quote(value) : String(value);
}

const ESCAPES: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
};

/** A JSON string with everything outside printable ASCII as `\uXXXX`. */
export function quote(text: string): string {
  let result = '"';
  for (let i = 0; i < text.length; i++) {
    const char = text[i] as string;
    const code = text.charCodeAt(i);
    const escaped = ESCAPES[char];
    if (escaped !== undefined) result += escaped;
    else if (code < 0x20 || code >= 0x7f) result += `\\u${code.toString(16).toUpperCase().padStart(4, '0')}`;
    else result += char;
  }
  return `${result}"`;
}
