/** Audits: each rule has an image that breaks it, sound images break none, nothing that an image names is touched, and no damage stops an audit. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { AuditBook, shown } from '../../src/core/audit.ts';
import { auditRule, TEXT } from '../../src/core/audit-rules.ts';
import { ALL_FORMATS } from '../../src/formats/all.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { type AuditReport, auditImage, auditRules } from '../../src/tools/audit.ts';
import { loadBases } from '../hostile/bases.ts';
import { bake, Mutator, type Recipe } from '../hostile/mutate.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';
import { AUDIT_CASES, type AuditCase, IMAGE, type Made, rewritten, sound } from '../support/audit-cases.ts';
import { scaled } from '../support/seeds.ts';

const FIXTURES = fileURLToPath(new URL('../fixtures/hostile', import.meta.url));

async function auditOf(made: Made, format?: string): Promise<{ report: AuditReport; files: MemoryFiles }> {
  const files = new MemoryFiles();
  files.add(IMAGE, made);
  const report = await auditImage(IMAGE, { formats: ALL_FORMATS, protocols: [files.protocol], format });
  return { report, files };
}

const ids = ({ findings }: AuditReport): string[] => [...new Set(findings.map(({ id }) => id))];

describe('an audit', () => {
  const rules = auditRules(ALL_FORMATS).flatMap((group) => group.rules);

  it('has one image at least for every rule, and no rule twice', () => {
    const known = rules.map(({ id }) => id);
    expect(new Set(known).size).toBe(known.length);
    expect([...new Set(AUDIT_CASES.map(({ id }) => id))].sort()).toEqual([...known].sort());
  });

  it.each(AUDIT_CASES.map((one, index): [string, AuditCase] => [`${one.id} (${index})`, one]))(
    'finds %s',
    async (_name, one) => {
      const { report, files } = await auditOf(await one.make(), one.format);
      expect(ids(report)).toContain(one.id);
      expect(files.log).toEqual([`open ${IMAGE}`]);
      expect(files.open).toEqual([]);
      for (const { message, severity, remedy, id } of report.findings) {
        expect(message).not.toMatch(/[\p{Cc}\p{Cf}]/u);
        expect(message).not.toBe('');
        expect(remedy).not.toBe('');
        expect(severity).toBe(rules.find((rule) => rule.id === id)?.severity);
      }
    },
  );

  it('finds nothing in a sound image', async () => {
    const { report } = await auditOf(await sound());
    expect(report).toEqual({
      filename: IMAGE,
      format: 'qcow2',
      guessed: false,
      findings: [],
      more: {},
      worst: undefined,
    });
  });

  it('tells the names in a header that is refused', async () => {
    const bytes = rewritten(await sound(), { backing: '/dev/sda', format: 'raw' });
    new DataView(bytes.buffer).setUint32(96, 9);
    new DataView(bytes.buffer).setUint32(20, 40);
    const { report } = await auditOf(bytes);
    expect(ids(report)).toEqual(expect.arrayContaining(['reference.system-path', 'header.invalid']));
  });

  it('tells place, field and value of what it finds', async () => {
    const { report } = await auditOf(rewritten(await sound(), { backing: '/dev/sda', format: 'raw' }));
    expect(report.worst).toBe('high');
    expect(report.findings[0]).toMatchObject({
      id: 'reference.system-path',
      severity: 'high',
      offset: 136,
      field: 'backingFileOffset',
      value: '/dev/sda',
      message: 'the backing file is "/dev/sda": a part of the system',
    });
  });

  it('keeps some findings of a kind and counts the others', async () => {
    const bytes = await sound();
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    const l2 = Number(view.getBigUint64(3 * 65536) & 0x00ff_ffff_ffff_fe00n);
    for (let at = 0; at < 100; at++) view.setBigUint64(l2 + at * 8, BigInt(at % 2 === 0 ? 2 ** 40 + at * 2 ** 20 : 0));
    const { report } = await auditOf(bytes);
    expect(report.findings.filter(({ id }) => id === 'qcow2.out-of-file')).toHaveLength(8);
    expect(report.more).toMatchObject({ 'qcow2.out-of-file': 42 });
  });

  it('needs no image to be one', async () => {
    for (const made of [new Uint8Array(0), new Uint8Array(7), new Uint8Array(512).fill(0x51)]) {
      const { report } = await auditOf(made);
      expect(report).toMatchObject({ format: 'raw', guessed: true, findings: [] });
    }
    for (const { name } of ALL_FORMATS) {
      for (const made of [new Uint8Array(0), new Uint8Array(512).fill(0x51)]) {
        const { report } = await auditOf(made, name);
        expect(report.format).toBe(name);
        expect(ids(report)).toEqual(name === 'raw' ? [] : ['header.invalid']);
      }
    }
  });

  it('survives whatever was ever done to an image by the hostile tests', async () => {
    const bases = loadBases(join(FIXTURES, 'bases'));
    const mutator = new Mutator(bases, 5);
    const failures = readdirSync(join(FIXTURES, 'failures')).map((name) => {
      return (JSON.parse(readFileSync(join(FIXTURES, 'failures', name), 'utf8')) as { recipe: Recipe }).recipe;
    });
    const drawn = Array.from({ length: scaled(150) }, (_, index) => mutator.recipe(index));
    for (const recipe of [...failures, ...drawn]) {
      const files = new MemoryFiles();
      files.add(IMAGE, bake(recipe, bases));
      const options = { formats: ALL_FORMATS, protocols: [files.protocol], format: 'qcow2' };
      const report = await auditImage(IMAGE, options).catch((error: unknown) => {
        throw new Error(`recipe ${JSON.stringify(recipe)}`, { cause: error });
      });
      expect(files.log, JSON.stringify(recipe)).toEqual([`open ${IMAGE}`]);
      expect(report.findings.length).toBeLessThan(500);
    }
  }, 120_000);

  it('finds no more than facts in the images that those begin with, but for what they were made for', async () => {
    for (const [name, base] of loadBases(join(FIXTURES, 'bases'))) {
      const { report } = await auditOf(MemoryStore.from(base.bytes(), { name, pageSize: 4096 }));
      const grave = report.findings.filter(({ severity }) => severity !== 'info').map(({ id }) => id);
      expect([name, ...new Set(grave)]).toEqual([name, ...(EXPECTED[name] ?? [])]);
    }
  });

  it('stops when it is told to', async () => {
    const files = new MemoryFiles();
    files.add(IMAGE, await sound());
    const options = { formats: ALL_FORMATS, protocols: [files.protocol], signal: AbortSignal.abort() };
    await expect(auditImage(IMAGE, options)).rejects.toMatchObject({ code: 'ABORTED' });
    expect(files.open).toEqual([]);
  });

  it('refuses what it could only wait for', async () => {
    const { protocol } = new MemoryFiles();
    const waiting = {
      ...protocol,
      status: async () => ({ kind: 'pipe', size: 0, identity: undefined }) as const,
    };
    await expect(auditImage('pipe', { formats: ALL_FORMATS, protocols: [waiting] })).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'audit.not-a-file',
    });
  });
});

/** What some of them are about. */
const EXPECTED: Readonly<Record<string, readonly string[]>> = {
  dirty: ['qcow2.dirty'],
  luks: ['encryption.weak-iterations'],
  keyed: ['encryption.weak-iterations'],
};

describe('the text of a finding', () => {
  it('shows what a terminal would obey, and not all of what is long', () => {
    expect(shown('a\x1b[2J\u202eb\u0085')).toBe('"a\\u{1b}[2J\\u{202e}b\\u{85}"');
    expect(shown('x'.repeat(5000))).toHaveLength(163);
  });

  it('is not made where nobody will see it', () => {
    const book = new AuditBook();
    let made = 0;
    for (let i = 0; i < 100; i++) book.add(TEXT, {}, () => `${++made}`);
    expect(made).toBe(8);
    expect(book.more).toEqual({ [TEXT.id]: 92 });
    const rule = auditRule('a.b', 'high', 'it is so', 'do so');
    book.add(rule, { offset: Number.POSITIVE_INFINITY }, 'x');
    expect(book.findings[0]).toEqual({ id: 'a.b', severity: 'high', message: 'x', remedy: 'do so' });
  });
});
