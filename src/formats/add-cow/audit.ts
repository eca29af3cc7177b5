/** The audit of add-cow images: the files that the header names, whether the header is accepted or not, and what hides in it. Spec: add-cow, v9
 *  and V20. Neither file is opened: how large the disk is, is not known here. */

import { hex } from '../../base/errors.ts';
import { type AuditContext, type AuditFacet, readBytes } from '../../core/audit.ts';
import {
  auditHeader,
  auditReference,
  auditSameFile,
  auditSlack,
  HEADER,
  HIDDEN,
  type NamedFile,
} from '../../core/audit-rules.ts';
import { readHeader } from './header.ts';
import { HeaderV9, hasV9Magic } from './header-v9.ts';
import { HeaderV20, hasV20Magic } from './header-v20.ts';
import { MAX_CLUSTER_BITS, RAW, V9_HEADER, V9_NAME_BYTES, V20_FIELDS, V20_MIN_HEADER } from './layout.ts';
import { cutAtNul, recordedName } from './record.ts';

/** Longer names are not those of files. */
const MOST_NAME = 64 * 1024;

async function audit(context: AuditContext): Promise<void> {
  const { file, name, book } = context;
  const header = await auditHeader(context, () => readHeader(file, name));
  const head = await readBytes(file, 0, V20_MIN_HEADER);
  const isOld = hasV9Magic(head);
  if (!isOld && !hasV20Magic(head)) return;
  const { image, backing } = isOld ? namesOfV9(head) : await namesOfV20(context, head);
  if (image !== undefined) auditReference(context, image);
  if (backing !== undefined) auditReference(context, backing);
  if (image !== undefined && backing !== undefined) auditSameFile(context, image, backing);
  if (header === undefined) return;
  const unknown = header.compatible - (header.compatible % 2n);
  if (unknown !== 0n) {
    const { offset, value } = { offset: HeaderV20.fields.compatible[0], value: `0x${unknown.toString(16)}` };
    book.add(HEADER.unknown, { offset, field: 'compatible', value }, `compatible features ${value} are not known`);
  }
  if (isOld) auditFieldsV9(context, head);
  else await auditRoomV20(context, header.clusterSize, image, backing);
}

interface Names {
  readonly image: NamedFile | undefined;
  readonly backing: NamedFile | undefined;
}

function namesOfV9(head: Uint8Array): Names {
  const { imageFile, backingFile } = HeaderV9.decode(head);
  const named = (what: string, bytes: Uint8Array, offset: number, format: string | undefined) => {
    if (bytes.length === 0) return undefined;
    return { what, ...nameOf(bytes), offset, field: what, format, probed: format === undefined };
  };
  const { fields } = HeaderV9;
  return {
    image: named('image file', cutAtNul(imageFile), fields.imageFile[0], RAW),
    backing: named('backing file', cutAtNul(backingFile), fields.backingFile[0], undefined),
  };
}

async function namesOfV20(context: AuditContext, head: Uint8Array): Promise<Names> {
  const fields = HeaderV20.decode(head);
  const named = async (what: string, offset: number, length: number, format: Uint8Array) => {
    if (offset === 0 || length === 0) return undefined;
    const bytes = cutAtNul(await readBytes(context.file, offset, Math.min(length, MOST_NAME)));
    const recorded = String.fromCharCode(...cutAtNul(format)) || undefined;
    return { what, ...nameOf(bytes), offset, field: what, format: recorded, probed: recorded === undefined };
  };
  return {
    image: await named('image file', fields.imageOffset, fields.imageSize, fields.imageFormat),
    backing: await named('backing file', fields.backingOffset, fields.backingSize, fields.backingFormat),
  };
}

function nameOf(bytes: Uint8Array): { readonly name: string; readonly bytes: Uint8Array } {
  return { name: recordedName(bytes, 0).text, bytes };
}

/** What follows the names in their fields, and the reserved bytes. */
function auditFieldsV9(context: AuditContext, head: Uint8Array): void {
  const { fields } = HeaderV9;
  const places: readonly (readonly [string, number, number])[] = [
    ['behind the name of the backing file', fields.backingFile[0], V9_NAME_BYTES],
    ['behind the name of the image file', fields.imageFile[0], V9_NAME_BYTES],
    ['in the reserved bytes of the header', fields.reserved[0], V9_HEADER - fields.reserved[0]],
  ];
  for (const [what, at, length] of places) {
    const field = head.subarray(at, at + length);
    const skip = what.startsWith('in') ? 0 : cutAtNul(field).length;
    const index = field.findIndex((byte, i) => i >= skip && byte !== 0);
    if (index >= 0) {
      context.book.add(HIDDEN.slack, { offset: at + index }, `there is content ${what}, at ${hex(at + index)}`);
    }
  }
}

/** The room of the header without its names. */
async function auditRoomV20(
  context: AuditContext,
  clusterSize: number,
  image: NamedFile | undefined,
  backing: NamedFile | undefined,
): Promise<void> {
  const size = Math.min(Math.max(V20_MIN_HEADER, clusterSize), 2 ** MAX_CLUSTER_BITS);
  const names = [image, backing]
    .filter((named) => named !== undefined)
    .sort((a, b) => (a.offset ?? 0) - (b.offset ?? 0));
  let at = V20_FIELDS;
  for (const { offset = 0, bytes } of names) {
    await auditSlack(context, 'in the header, before a name', at, offset);
    at = Math.max(at, offset + (bytes?.length ?? 0));
  }
  await auditSlack(context, 'in the header, behind the names', at, size);
}

export const addCowAuditor: AuditFacet = { rules: [], audit };
