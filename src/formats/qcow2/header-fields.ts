/** The header's fixed fields as the file has them. Spec: qcow2, "Header". Data only; `header.ts` decodes, `header-checks.ts` checks. */
import { hex } from '../../base/errors.ts';
import { flags64, pad, type StructValue, struct, u8, u32, u64 } from '../../bytes/struct.ts';

/** `QFI\xfb`. */
export const QCOW2_MAGIC = 0x5146_49fb;

/** The part that both versions have. */
export const HeaderV2 = struct('qcow2 header', 72, {
  magic: [0, u32],
  version: [4, u32],
  backingFileOffset: [8, u64],
  backingFileSize: [16, u32],
  clusterBits: [20, u32],
  size: [24, u64],
  cryptMethod: [32, u32],
  l1Size: [36, u32],
  l1Offset: [40, u64],
  refcountTableOffset: [48, u64],
  refcountTableClusters: [56, u32],
  snapshotCount: [60, u32],
  snapshotsOffset: [64, u64],
});

/** What version 3 adds, from byte 72 on; `compressionType` and the padding only where header_length says so. */
export const HEADER_V3_AT = HeaderV2.size;
export const HeaderV3 = struct('qcow2 version 3 header', 40, {
  incompatible: [0, flags64],
  compatible: [8, flags64],
  autoclear: [16, flags64],
  refcountOrder: [24, u32],
  headerLength: [28, u32],
  compressionType: [32, u8],
  padding: [33, pad(7)],
});
/** Shortest header_length of version 3: without the compression type. */
export const HEADER_V3_MIN_LENGTH = 104;
/** 112: the header this library writes, without unknown fields. */
export const HEADER_V3_LENGTH = HEADER_V3_AT + HeaderV3.size;

export type FixedFields = StructValue<typeof HeaderV2.fields>;
export type Version3Fields = Omit<StructValue<typeof HeaderV3.fields>, 'padding'>;

/** Values of the encryption method field. */
export const ENCRYPTION_METHODS = ['none', 'aes', 'luks'] as const;

/** A 64-bit field in a message: no number holds what is above 2^53-1. */
export function hex64(value: number): string {
  return Number.isFinite(value) ? hex(value) : 'above 2^53-1';
}
