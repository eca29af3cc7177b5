/** Audits an image: what its maker may have put into it. The file that is named is read; nothing that it names is resolved, looked at or opened.
 *  Invariants: what an image holds never makes an audit fail; time and memory are bounded by the format's audit; nothing is written. */
import { BlockError } from '../base/errors.ts';
import { type JobOptions, throwIfAborted } from '../base/job.ts';
import {
  AUDIT_SEVERITIES,
  AuditBook,
  type AuditFinding,
  type AuditRule,
  type AuditSeverity,
  readBytes,
} from '../core/audit.ts';
import { COMMON_RULES } from '../core/audit-rules.ts';
import type { FormatDriver } from '../core/format.ts';
import type { BlockNode } from '../core/node.ts';
import type { ImageDrivers } from '../image/open.ts';
import { probeBytes, requireFormat } from '../image/probe.ts';
import { protocolOf } from '../image/references.ts';

export interface AuditImageOptions
  extends Pick<ImageDrivers, 'formats' | 'probed' | 'protocols'>,
    Pick<JobOptions, 'signal'> {
  /** Audit it as this format; found out by its first bytes when not given. */
  readonly format?: string | undefined;
}

export interface AuditReport {
  readonly filename: string;
  readonly format: string;
  /** Nothing told which format it is, so that it was taken for raw. */
  readonly guessed: boolean;
  /** The gravest first. */
  readonly findings: readonly AuditFinding[];
  /** Of each kind of which there were more: how many are not listed. */
  readonly more: Readonly<Record<string, number>>;
  /** The gravest severity; `undefined` where nothing was found. */
  readonly worst: AuditSeverity | undefined;
}

const PROBE_BYTES = 2048;

/** @param source a name, or an open store, which stays open.
 *  @throws {@link BlockError} as opening the file itself; UNSUPPORTED `audit.not-a-file` (a pipe, a directory), `audit.format` (the format has no audit);
 *  INVALID_ARGUMENT `image.unknown-format`; IO; ABORTED. */
export async function auditImage(source: string | BlockNode, options: AuditImageOptions): Promise<AuditReport> {
  if (typeof source !== 'string') return await auditFile(source, source.name, options);
  const protocol = protocolOf(source, options.protocols);
  const status = await protocol.status?.(source);
  // Opening a pipe waits for its other end.
  if (status !== undefined && status.kind !== 'file' && status.kind !== 'device') {
    throw new BlockError('UNSUPPORTED', `"${source}": is a ${status.kind}; only files and devices can be audited`, {
      reason: 'audit.not-a-file',
      details: { name: source, kind: status.kind },
    });
  }
  const file = await protocol.open(source, { readOnly: true, signal: options.signal });
  try {
    return await auditFile(file, source, options);
  } finally {
    await file.close();
  }
}

async function auditFile(file: BlockNode, name: string, options: AuditImageOptions): Promise<AuditReport> {
  const { formats, signal } = options;
  throwIfAborted(signal);
  const head = await readBytes(file, 0, Math.min(PROBE_BYTES, file.size));
  const input = { head, fileSize: file.size, name };
  const probed = probeBytes(input, options.probed ?? formats);
  const driver = options.format === undefined ? probed?.driver : requireFormat(options.format, name, formats);
  const { auditor } = driver ?? {};
  if (driver === undefined || auditor === undefined) {
    throw new BlockError(
      'UNSUPPORTED',
      `"${name}": there is no audit for ${driver?.name ?? 'a format that is not recognised'}`,
      {
        reason: 'audit.format',
        details: { name, format: driver?.name },
      },
    );
  }
  const book = new AuditBook();
  const looksLike = formats.filter((other) => other !== driver && other.probe(input) > 1).map((other) => other.name);
  const formatNames = formats.map((other) => other.name);
  await auditor.audit({ file, name, looksLike, formatNames, book, signal });
  const { findings, more } = book;
  const guessed = options.format === undefined && probed?.guessed === true;
  return { filename: name, format: driver.name, guessed, findings, more, worst: findings[0]?.severity };
}

/** Everything that audits look for: the rules of all formats, then those of each. */
export function auditRules(
  formats: readonly FormatDriver[],
): readonly { readonly format: string | undefined; readonly rules: readonly AuditRule[] }[] {
  const common = new Set(COMMON_RULES);
  const shared = formats.flatMap(({ auditor }) => auditor?.rules ?? []);
  for (const rule of shared) if (shared.indexOf(rule) !== shared.lastIndexOf(rule)) common.add(rule);
  return [
    { format: undefined, rules: [...common] },
    ...formats.map(({ name, auditor }) => ({
      format: name,
      rules: (auditor?.rules ?? []).filter((rule) => !common.has(rule)),
    })),
  ];
}

/** Whether a severity is at least another. */
export function isAtLeast(severity: AuditSeverity, threshold: AuditSeverity): boolean {
  return AUDIT_SEVERITIES.indexOf(severity) >= AUDIT_SEVERITIES.indexOf(threshold);
}
