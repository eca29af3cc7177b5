/** QEMU's sentences for the findings of qcow2. Data only. */
import { strerror, type TextRule } from './qemu-text.ts';

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
  'qcow2.encrypt-twice': "'encrypt.format' and its alias 'encryption' can't be used at the same time",
  'qcow2.encrypt-format-missing': "Parameter 'encrypt.format' is missing",
  'qcow2.encrypt-format': ({ value }) => `Parameter 'format' does not accept value '${value}'`,
  'qcow2.encrypt-choice': ({ option, value }) => `Parameter '${option}' does not accept value '${value}'`,
  'qcow2.encrypt-surplus': ({ option }) => `Parameter 'encrypt.${option}' is unexpected`,
  'qcow2.measure-size': 'The image size is too large (try using a larger cluster size)',
  'qcow2.assign-backing': ({ backingFile, backingFormat, errno }) =>
    `Could not assign backing file '${backingFile}' with format '${backingFormat}': ${
      errno === 'ENOSPC' ? 'No space left on device' : 'Invalid argument'
    }`,

  // resizing and amending
  'qcow2.resize-unaligned': 'The new size must be a multiple of 512',
  'qcow2.resize-too-large': 'Failed to grow the L1 table: File too large',
  'qcow2.resize-preallocation-shrink': "Preallocation can't be used for shrinking an image",
  'qcow2.resize-v2-snapshots': "Can't resize a v2 image which has snapshots",
  'qcow2.amend-compat': ({ value }) => `Unknown compatibility level ${value}`,
  'qcow2.amend-data-file': 'data-file can only be set for images that use an external data file',
  'qcow2.amend-data-file-raw': 'data-file-raw cannot be set on existing images',
  'qcow2.amend-backing': () => ({
    text: 'Cannot amend the backing file',
    hint: "You can use 'qemu-img rebase' instead.\n",
  }),
  'qcow2.amend-lazy-refcounts':
    'Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)',
  'qcow2.amend-refcount-bits':
    'Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)',
  'qcow2.amend-refcount-overflow': ({ bits, offset, value }) =>
    `Cannot decrease refcount entry width to ${bits} bits: Cluster at offset 0x${Number(offset).toString(16)} has a refcount of ${value}`,
  'qcow2.amend-downgrade-refcount-bits': 'compat=0.10 requires refcount_bits=16',
  'qcow2.amend-downgrade-data-file': 'Cannot downgrade an image with a data file',
  'qcow2.amend-downgrade-snapshots': 'Internal snapshots prevent downgrade of image',
  'qcow2.amend-downgrade-features': ({ features }) =>
    `Cannot downgrade an image with incompatible features 0x${features} set`,
  'qcow2.amend-not-encrypted': "Can't amend encryption options - encryption not present",
  'qcow2.amend-not-luks': 'Only LUKS encryption options can be amended',

  // options of opening
  'qcow2.cache-sizes-all': 'cache-size, l2-cache-size and refcount-cache-size may not be set at the same time',
  'qcow2.l2-cache-size': 'l2-cache-size may not exceed cache-size',
  'qcow2.refcount-cache-size': 'refcount-cache-size may not exceed cache-size',
  'qcow2.l2-cache-entry-size': ({ bound }) =>
    `L2 cache entry size must be a power of two between 512 and the cluster size (${Array.isArray(bound) ? bound[1] : bound})`,
  'qcow2.l2-cache-too-big': 'L2 cache size too big',
  'qcow2.refcount-cache-too-big': 'Refcount cache size too big',
  'qcow2.cache-clean-interval': 'Cache clean interval too big',
  'qcow2.discard-no-unref': 'discard-no-unref is only supported since qcow2 version 3',
  'qcow2.lazy-refcounts': 'Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level',
  'qcow2.overlap-check': ({ value }) =>
    `Unsupported value '${value}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, constant, cached, all`,
  'qcow2.overlap-check-conflict': ({ overlapCheck, overlapCheckTemplate }) =>
    `Conflicting values for qcow2 options 'overlap-check' ('${overlapCheck}') and 'overlap-check.template' ('${overlapCheckTemplate}')`,
  'qcow2.encrypt-mismatch': ({ method, asked }) =>
    method === 'none'
      ? `No encryption in image header, but options specified format '${asked}'`
      : `Header reported '${method}' encryption format but options specify '${asked}'`,
  'qcow2.dirty-repair': 'Could not repair dirty image: Input/output error',

  // the header
  'qcow2.magic': 'Image is not in qcow2 format',
  'qcow2.version': ({ value }) => `Unsupported qcow2 version ${value}`,
  'qcow2.cluster-bits': ({ value }) => `Unsupported cluster size: 2^${value}`,
  'qcow2.header-read': (_, error) => `Could not read qcow2 header: ${strerror(error)}`,
  'qcow2.header-length-short': 'qcow2 header too short',
  'qcow2.header-length-long': 'qcow2 header exceeds cluster size',
  'qcow2.backing-offset': 'Invalid backing file offset',
  'qcow2.backing-name-length': 'Backing file name too long',
  'qcow2.compression-type': ({ value }) => `qcow2: unknown compression type: ${value}`,
  'qcow2.compression-bit': ({ mustBeSet }) =>
    `qcow2: Compression type incompatible feature bit must ${mustBeSet === true ? '' : 'not '}be set`,
  'qcow2.incompatible-features': (_, error) => {
    const parts = error.message.slice(error.message.lastIndexOf('unsupported feature: ') + 21);
    return `Unsupported qcow2 feature(s): ${parts.replace('unknown incompatible feature ', 'Unknown incompatible feature: ')}`;
  },
  'qcow2.corrupt': 'qcow2: Image is corrupt; cannot be opened read/write',
  'qcow2.subcluster-size': ({ value }) => `Unsupported subcluster size: ${value}`,
  'qcow2.refcount-order': 'Reference count entry width too large; may not exceed 64 bits',
  'qcow2.encryption-method': ({ value }) => `Unsupported encryption method ${value}`,
  'qcow2.encrypted': "Parameter 'encrypt.key-secret' is required for cipher",
  'qcow2.refcount-table-missing': 'Image does not contain a reference count table',
  'qcow2.refcount-table-size': 'Reference count table too large',
  'qcow2.refcount-table-offset': 'Reference count table offset invalid',
  'qcow2.snapshots-size': 'Snapshot table too large',
  'qcow2.snapshots-offset': 'Snapshot table offset invalid',
  'qcow2.l1-size': 'Active L1 table too large',
  'qcow2.l1-offset': 'Active L1 table offset invalid',
  'qcow2.l1-too-small': 'L1 table is too small',
  'qcow2.image-too-big': 'Image is too big',
  'qcow2.data-file-raw': 'data-file-raw requires a data file',
  'qcow2.data-file-missing': "'data-file' is required for this image",
  'qcow2.snapshot-missing': "Can't find snapshot",
  'qcow2.snapshot-l1-size': 'Snapshot L1 table too large',
  'qcow2.snapshot-l1-offset': 'Snapshot L1 table offset invalid',
  'qcow2.snapshot-extra': ({ index }) => ({
    text: `Too much extra metadata in snapshot table entry ${index}`,
    hint: 'You can force-remove this extra metadata with qemu-img check -r all\n',
  }),

  // header extensions
  'qcow2.extension-too-large': 'Header extension too large',
  'qcow2.backing-format-length': ({ value }) => `ERROR: ext_backing_format: len=${value} too large (>=16)`,
  'qcow2.crypto-unexpected': 'CRYPTO header extension only expected with LUKS encryption method',
  'qcow2.crypto-length': ({ value, bound }) => `CRYPTO header extension size ${value}, but expected size ${bound}`,
  'qcow2.crypto-offset': ({ value, bound }) =>
    `Encryption header offset '${value}' is not a multiple of cluster size '${bound}'`,
  'qcow2.crypto-missing': ({ method }) => `Missing CRYPTO header for crypt method ${method}`,
  'qcow2.crypto-window': 'Request for data outside of extension header',
  'qcow2.bitmaps-length': 'bitmaps_ext: Invalid extension length',
  'qcow2.bitmaps-reserved': 'bitmaps_ext: Reserved field is not zero',
  'qcow2.bitmaps-count': ({ value, bound }) =>
    `bitmaps_ext: Image has ${value} bitmaps, exceeding the QEMU supported maximum of ${bound}`,
  'qcow2.bitmaps-none': 'found bitmaps extension with zero bitmaps',
  'qcow2.bitmaps-offset': 'bitmaps_ext: invalid bitmap directory offset',
  'qcow2.bitmaps-size': ({ value, bound }) =>
    `bitmaps_ext: bitmap directory size (${value}) exceeds the maximum supported size (${bound})`,
};
