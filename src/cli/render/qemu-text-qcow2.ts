/** QEMU's sentences for the findings of qcow2. Data only. */
import type { TextRule } from './qemu-text.ts';

const V3_TAIL = 'only supported with compatibility level 1.1 and above (use version=v3 or greater)';

export const QCOW2_TEXTS: Readonly<Record<string, TextRule>> = {
  // options of create
  'qcow2.cluster-size': 'Cluster size must be a power of two between 512 and 2048k',
  'qcow2.compat': ({ value }) => `Parameter 'version' does not accept value '${value}'`,
  'qcow2.preallocation': ({ value }) => `Parameter 'preallocation' does not accept value '${value}'`,
  'qcow2.compression-type-option': ({ value }) => `Parameter 'compression-type' does not accept value '${value}'`,
  'qcow2.refcount-bits': 'Refcount width must be a power of two and may not exceed 64 bits',
  'qcow2.refcount-bits-version':
    'Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)',
  'qcow2.extended-l2-version': `Extended L2 entries are ${V3_TAIL}`,
  'qcow2.extended-l2-cluster-size': 'Extended L2 entries are only supported with cluster sizes of at least 16384 bytes',
  'qcow2.preallocation-backing':
    'Backing file and preallocation can only be used at the same time if extended_l2 is on',
  'qcow2.format-without-backing': 'Backing format cannot be used without backing file',
  'qcow2.lazy-refcounts-version': `Lazy refcounts ${V3_TAIL}`,
  'qcow2.data-file-raw-alone': 'data-file-raw requires data-file',
  'qcow2.data-file-raw-backing': 'Backing file and data-file-raw cannot be used at the same time',
  'qcow2.data-file-version': `External data files are ${V3_TAIL}`,
  'qcow2.compression-type-version': `Non-zlib compression type is ${V3_TAIL}`,
  'qcow2.measure-size': 'The image size is too large (try using a larger cluster size)',
  // opening
  'qcow2.magic': 'Image is not in qcow2 format',
};
