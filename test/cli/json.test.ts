import { describe, expect, it } from 'vitest';
import { bucketOf, compactJson, orderedEntries, prettyJson, quote } from '../../src/cli/render/json.ts';

/** Orders seen in the output of QEMU's tools; those of one object, in order. */
const ORDERS: readonly string[] = [
  'backing-filename-format, snapshots, virtual-size, filename, cluster-size, format, actual-size, format-specific, full-backing-filename, encrypted, backing-filename, dirty-flag',
  'compressed, limits, backing-filename-format, children, snapshots, virtual-size',
  'compat, compression-type, lazy-refcounts, bitmaps, refcount-bits, data-file, encrypt, data-file-raw, corrupt, extended-l2',
  'image-end-offset, compressed-clusters, total-clusters, corruptions, corruptions-fixed, check-errors, leaks, leaks-fixed, allocated-clusters, filename, format, fragmented-clusters',
  'icount, vm-clock-nsec, name, date-sec, date-nsec, vm-clock-sec, id, vm-state-size',
  'bitmaps, required, fully-allocated',
  'ivgen-alg, hash-alg, cipher-alg, uuid, ivgen-hash-alg, format, cipher-mode, slots, payload-offset, master-key-iters',
  'active, iters, key-offset, stripes',
  'flags, name, granularity',
  'offset, driver, size, file',
];

describe("JSON in QEMU's order and layout", () => {
  it.each(ORDERS)('orders %s', (order) => {
    const keys = order.split(', ');
    const shuffled = Object.fromEntries([...keys].reverse().map((key) => [key, 0]));
    expect(orderedEntries(shuffled).map(([key]) => key)).toEqual(keys);
  });

  it('puts the newest first of those in one bucket', () => {
    const words = Array.from({ length: 50_000 }, (_, i) => i.toString(36)).filter((word) => /^[a-z]/.test(word));
    const rival = words.find((key) => bucketOf(key) === bucketOf('format'));
    expect(orderedEntries({ format: 1, [rival as string]: 2 }).map(([key]) => key)).toEqual([rival, 'format']);
    expect(orderedEntries({ [rival as string]: 2, format: 1 }).map(([key]) => key)).toEqual(['format', rival]);
  });

  it('indents by four blanks, and prints an empty array over two lines', () => {
    expect(prettyJson({ name: 'b0', flags: [], granularity: 65536n })).toBe(
      '{\n    "flags": [\n    ],\n    "name": "b0",\n    "granularity": 65536\n}\n',
    );
    expect(prettyJson([{ corrupt: false }, []])).toBe('[\n    {\n        "corrupt": false\n    },\n    [\n    ]\n]\n');
  });

  it('leaves out members without a value', () => {
    expect(prettyJson({ leaks: undefined, filename: 'x' })).toBe('{\n    "filename": "x"\n}\n');
  });

  it('writes names on one line with blanks after commas and colons', () => {
    expect(compactJson({ file: { filename: 'a', driver: 'file' }, driver: 'raw', list: [1, true, null] })).toBe(
      '{"list": [1, true, null], "driver": "raw", "file": {"driver": "file", "filename": "a"}}',
    );
  });

  it('escapes everything outside printable ASCII', () => {
    expect(quote('ä"\\\n\t\u007f😀\u0001')).toBe('"\\u00E4\\"\\\\\\n\\t\\u007F\\uD83D\\uDE00\\u0001"');
  });
});
