/** Every finding of the library has a sentence of QEMU's, or is known to be one that QEMU does not have. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../src/base/errors.ts';
import { ioError, KNOWN_REASONS, qemuText } from '../../src/cli/render/qemu-text.ts';

const SOURCES = fileURLToPath(new URL('../../src', import.meta.url));

/** Findings without a sentence of QEMU's: what it does not do, does not refuse, or tells in a frame of its verbs. */
const WITHOUT: readonly string[] = [
  // references are not restricted in QEMU, loops not found, and codecs and engines are its own
  'chain.cycle',
  'chain.depth',
  'reference.denied',
  'reference.json',
  'reference.unprobed',
  'protocol.none',
  'reference.no-location',
  'graph.options-file',
  'graph.backing-empty',
  // a bottom outside of the chain makes QEMU wait for ever; what filters tell beside errors goes to QMP there
  'copy-on-read.bottom-chain',
  'preallocate.failed',
  'quorum.child',
  'quorum.failure',
  // cowdisk's own options, and warnings
  'image.backing-override',
  // audits and differences are cowdisk's own
  'audit.not-a-file',
  'audit.format',
  'diff.block',
  'delta.data',
  'delta.digest',
  'delta.flags',
  'delta.incomplete',
  'delta.magic',
  'delta.record',
  'delta.resize',
  'delta.result',
  'delta.same-file',
  'delta.size',
  'delta.target',
  'delta.target-size',
  'delta.trailing',
  'delta.truncated',
  'delta.version',
  // recovery is cowdisk's own
  'file.locking',
  'image.recover',
  'image.recover-read-only',
  'recover.exists',
  'qcow2.recover-cluster-size',
  'qcow2.recover-encrypted',
  'qcow2.recover-memory',
  'qcow2.recover-nothing',
  'qcow2.recover-size',
  'image.guessed',
  'codec.argument',
  'codec.closed',
  'codec.data',
  'codec.workers',
  'codec.zstd',
  'image.no-codecs',
  'pool.closed',
  'pool.not-built',
  'pool.task',
  'pool.worker',
  // what QEMU takes without asking, or has no other word for than the error's number
  'aligned.fast-zero',
  'blkdebug.errno',
  'blkdebug.no-event',
  'blkdebug.no-tag',
  'blkdebug.permissions',
  'blkdebug.rules-line',
  'blkdebug.sector',
  'blkverify.fast-zero',
  'engine.amend',
  'engine.change-backing',
  'engine.compress',
  'engine.compress-align',
  'engine.condemned',
  'engine.detach',
  'engine.empty',
  'engine.fast-zero',
  'engine.range',
  'engine.read-only',
  'slice.align',
  'slice.range',
  'store.align',
  'store.forward-order',
  'store.forward-read',
  'store.preallocation-shrink',
  'store.range',
  'store.truncate',
  'store.zeroes-slow',
  'raw.window-fixed',
  'raw.window-large',
  // mistakes of a caller in TypeScript, which the command line answers itself
  'create.size',
  'image.length',
  'image.shrink',
  'image.invalidate',
  'image.reopen-lost',
  'image.reopen-store',
  'map.range',
  'map.references',
  'measure.input',
  'option.int-text',
  'option.unknown',
  'qcow2.size-twice',
  'qcow2.keep-data-file-alone',
  // QEMU makes images of arbitrary content then, and stores plain text
  'qcow2.encrypt-preallocation',
  'qcow2.encrypt-keep-data-file',
  'qcow2.compressed-encrypted',
  'convert.no-input',
  'convert.sparse-size',
  'convert.parallel',
  'convert.rate',
  'convert.window',
  'convert.window-backing',
  'bench.argument',
  'bench.range',
  'convert.options-existing',
  'convert.concat-backing',
  'convert.backing-existing',
  'convert.no-backing',
  'convert.forward',
  'convert.size',
  // told by the verbs, with places and numbers
  'convert.read',
  'convert.status',
  'convert.write',
  'convert.incomplete',
  'convert.target-is-input',
  'compare.read',
  'compare.extents',
  'commit.same-file',
  // cowdisk's own verb
  'detach.incomplete',
  'detach.remove',
  'detach.unsupported',
  // in the frame of rebase
  'qcow2.backing-name',
  // told when an image is closed
  'qcow2.bitmaps-lost',
  'qcow2.check-failed',
  'qcow2.check-memory',
  // targets are replaced at their end here
  'target.create',
  'target.exists',
  // a size that fits no table is one message in QEMU, made by create
  'qcow2.create-size',
  'qcow2.device-small',
  'qcow2.header-space',
  // I/O errors in QEMU, without a sentence
  'qcow2.compressed-data',
  'qcow2.compressed-offset',
  'qcow2.data-file-compressed-write',
  'qcow2.refcount-range',
  'qcow2.amend-l1-tables',
  'qcow2.amend-refcount-blocks',
  'qcow2.resize-l1-entries',
  'qcow2.refcount-table-limit',
  // an errno in QEMU, in the frame of snapshot
  'image.snapshot-read-only',
  'qcow2.snapshot-disk-size',
  'qcow2.snapshot-refcount',
  'qcow2.vm-state-too-large',
  // limits and mistakes of this library's ciphers
  'crypto.pbkdf2',
  'crypto.wiped',
  'luks.byte-order',
  'luks.device-small',
  'luks.foreign-key',
  'luks.forward',
  'luks.key-bytes',
  'luks.locked',
  'luks.rounds',
  'luks.size',
  'luks.truncated',
  // standard input and output as images are not QEMU's
  'convert.no-temporary',
  'stream.far',
  'stream.forgotten',
  'stream.length',
  'stream.long',
  'stream.short',
];

/** Formats that QEMU does not have (any more): it has no sentences for them either. */
const NOT_QEMUS = ['cow.', 'add-cow.', 'nbd.'];

/** Reasons that stand as a whole in the sources, and the findings of the qcow2 header by its own helper. */
function reasonsThrown(): string[] {
  const found = new Set<string>();
  for (const name of readdirSync(SOURCES, { recursive: true, encoding: 'utf8' })) {
    if (!name.endsWith('.ts') || name.startsWith('cli') || name.startsWith('testing')) continue;
    const text = readFileSync(join(SOURCES, name), 'utf8');
    for (const match of text.matchAll(/reason: '([a-z0-9-]+\.[a-z0-9-]+)'/g)) found.add(match[1] as string);
    for (const match of text.matchAll(/\bfault\(\s*(?:this\.#)?subject,\s*'([a-z0-9-]+)'/g))
      found.add(`luks.${match[1]}`);
    for (const match of text.matchAll(/\bluksFault\(\s*'[A-Z_]+',\s*(?:this\.#)?name,\s*'([a-z0-9-]+)'/g))
      found.add(`luks.${match[1]}`);
    for (const match of text.matchAll(/\bbad\(\s*'(slot-[a-z]+)'/g)) found.add(`luks.${match[1]}`);
    if (!/qcow2.(header|header-checks|options|create|extensions|encryption|new-encryption)\.ts$/.test(name)) continue;
    const calls = /\b(?:fault|refusal|needsV3|optionError|extensionError)\(\s*name,\s*'([a-z0-9-]+)'/g;
    for (const match of text.matchAll(calls)) found.add(`qcow2.${match[1]}`);
  }
  return [...found];
}

describe("QEMU's sentences", () => {
  it('exist for every finding, or the finding is listed as one without', () => {
    const missing = reasonsThrown().filter((reason) => !KNOWN_REASONS.has(reason) && !WITHOUT.includes(reason));
    expect(missing.filter((reason) => !NOT_QEMUS.some((prefix) => reason.startsWith(prefix)))).toEqual([]);
  });

  it('are not missing where one is listed as known', () => {
    expect(WITHOUT.filter((reason) => KNOWN_REASONS.has(reason))).toEqual([]);
  });

  it.each([...KNOWN_REASONS])('for %s can be made from an error without details', (reason) => {
    const { text } = qemuText(new BlockError('CORRUPT', 'house sentence: x', { reason }));
    expect(text.length).toBeGreaterThan(3);
    expect(text).not.toContain('undefined undefined');
  });

  it('nest as the files do', () => {
    const gone = new BlockError('NOT_FOUND', 'could not open "c": no such file or directory', {
      reason: 'system',
      details: { errno: 'ENOENT', name: 'c', path: 'c' },
    });
    const backing = (cause: BlockError): BlockError =>
      new BlockError('NOT_FOUND', 'x', { reason: 'image.backing', cause });
    expect(qemuText(backing(backing(gone))).text).toBe(
      "Could not open backing file: Could not open backing file: Could not open 'c': No such file or directory",
    );
    expect(qemuText(new BlockError('IO', 'x', { reason: 'image.data-file', cause: gone })).text).toBe(
      "Could not open 'c': No such file or directory",
    );
  });

  it("are the house's own where QEMU has none", () => {
    expect(qemuText(new BlockError('CHAIN', '"a": a loop', { reason: 'chain.cycle' })).text).toBe('"a": a loop');
  });

  it('call damage found while reading an input/output error', () => {
    expect(ioError(new BlockError('CORRUPT', 'x'))).toBe('Input/output error');
    expect(ioError(new BlockError('CORRUPT', 'x', { details: { errno: 'EFBIG' } }))).toBe('File too large');
    expect(ioError(new BlockError('NO_SPACE', 'x'))).toBe('No space left on device');
  });
});
