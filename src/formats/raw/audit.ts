/** The audit of raw disks: whether one looks like an image of another format. Spec: none; the signatures are those by which QEMU looks for formats.
 *  A guest that may write to its raw disk may write such a beginning, and whoever opens the file without naming its format follows what it says. */
import { type AuditContext, type AuditFacet, readBytes } from '../../core/audit.ts';
import { auditRule } from '../../core/audit-rules.ts';

const RAW = {
  looksLike: auditRule(
    'raw.looks-like',
    'high',
    'The disk begins (or ends) as an image of another format does: programs that are not told its format take it for one, and open what it names. Guests can write that into their raw disks.',
    'name the format wherever the file is used (`-f raw`, `-F raw`), or look into it with `cowdisk audit -f FORMAT`',
  ),
} as const;

interface Signature {
  readonly format: string;
  /** Negative: from the end of the file. */
  readonly at: number;
  readonly bytes: string;
}

const SIGNATURES: readonly Signature[] = [
  { format: 'qcow', at: 0, bytes: 'QFI\xfb\0\0\0\x01' },
  { format: 'qed', at: 0, bytes: 'QED\0' },
  { format: 'vmdk', at: 0, bytes: 'KDMV' },
  { format: 'vmdk', at: 0, bytes: 'COWD' },
  { format: 'vmdk', at: 0, bytes: '# Disk DescriptorFile' },
  { format: 'vhdx', at: 0, bytes: 'vhdxfile' },
  { format: 'vpc', at: 0, bytes: 'conectix' },
  { format: 'vpc', at: -512, bytes: 'conectix' },
  { format: 'vdi', at: 64, bytes: '\x7f\x10\xda\xbe' },
  { format: 'parallels', at: 0, bytes: 'WithoutFreeSpace' },
  { format: 'parallels', at: 0, bytes: 'WithouFreSpacExt' },
  { format: 'bochs', at: 0, bytes: 'Bochs Virtual HD Image' },
  { format: 'cloop', at: 0, bytes: '#!/bin/sh\n#V2.0 Format' },
  { format: 'dmg', at: -512, bytes: 'koly' },
  { format: 'luks', at: 0, bytes: 'LUKS\xba\xbe' },
];
const LOOKED_AT = 512;

async function audit(context: AuditContext): Promise<void> {
  const { file, book, looksLike } = context;
  for (const format of looksLike) {
    book.add(RAW.looksLike, { offset: 0, value: format }, `the disk begins as an image of format ${format} does`);
  }
  const head = await readBytes(file, 0, LOOKED_AT);
  const tailAt = Math.max(0, file.size - LOOKED_AT);
  const tail = await readBytes(file, tailAt, LOOKED_AT);
  const found = new Set(looksLike);
  for (const { format, at, bytes } of SIGNATURES) {
    const piece = at < 0 ? tail : head.subarray(at);
    if (found.has(format) || !startsWith(piece, bytes)) continue;
    found.add(format);
    book.add(
      RAW.looksLike,
      { offset: at < 0 ? tailAt : at, value: format },
      `the disk ${at < 0 ? 'ends' : 'begins'} as an image of format ${format} does`,
    );
  }
}

function startsWith(bytes: Uint8Array, text: string): boolean {
  return Array.from(text).every((character, i) => bytes[i] === character.charCodeAt(0));
}

export const rawAuditor: AuditFacet = { rules: Object.values(RAW), audit };
