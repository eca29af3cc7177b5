/** The audit of LUKS volumes: key slots, algorithms, and what lies between header and key material. No key is needed. Spec: LUKS 1.2.3, section 4. */
import { type AuditContext, type AuditFacet, readBytes } from '../../core/audit.ts';
import { auditEncryption, ENCRYPTION_RULES } from '../../core/audit-encryption.ts';
import { auditHeader, auditSlack } from '../../core/audit-rules.ts';
import { masterKeyBytes } from '../../crypto/algorithms.ts';
import { LUKS_HEADER_AREA, LUKS_HEADER_BYTES, materialBytes, parseLuksHeader } from '../../crypto/luks-header.ts';
import { subjectOf } from './fault.ts';

async function audit(context: AuditContext): Promise<void> {
  const head = await readBytes(context.file, 0, LUKS_HEADER_BYTES);
  // A header of its own, detached, is one whose payload begins at 0.
  const payloadSector = new DataView(head.buffer, head.byteOffset).getUint32(104);
  const header = await auditHeader(context, () => parseLuksHeader(head, payloadSector === 0, subjectOf(context.name)));
  if (header === undefined) return;
  auditEncryption(context, { ...header.algorithms, slots: header.slots }, { offset: 0 });
  await auditSlack(context, 'between the header and its key material', LUKS_HEADER_BYTES, LUKS_HEADER_AREA);
  const length = materialBytes(masterKeyBytes(header.algorithms));
  const material = header.slots.map(({ materialOffset }) => materialOffset + length);
  const behind = Math.max(...material);
  if (header.payloadOffset > behind) {
    await auditSlack(context, 'between the key material and the disk', behind, header.payloadOffset);
  }
}

export const luksAuditor: AuditFacet = { rules: ENCRYPTION_RULES, audit };
