/** QEMU's sentences for dirty bitmaps. Data only. Where QEMU names a node of its own, whose name is another at each run, the image's name stands. */
import { isBlockError } from '../../base/errors.ts';
import { qemuText, type TextRule } from './qemu-text.ts';

const REMEDY = 'Try block-dirty-bitmap-remove to delete this bitmap from disk\n';

export const BITMAP_TEXTS: Readonly<Record<string, TextRule>> = {
  'engine.bitmaps': ({ name }) => `Can't store persistent bitmaps to ${name}: Operation not supported`,
  'convert.bitmaps-concat': 'Copying bitmaps only possible with single source',
  'convert.bitmaps-source': 'Source lacks bitmap support',
  'convert.bitmaps-target': ({ format }) => `Format driver '${format}' does not support bitmaps`,
  'convert.bitmaps-inconsistent': ({ bitmap }) => ({
    text: `Cannot copy inconsistent bitmap '${bitmap}'`,
    hint: "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it\n",
  }),
  'convert.bitmap-create': ({ bitmap }) => `Failed to create bitmap ${bitmap}: Bitmap already exists: ${bitmap}`,
  'convert.bitmap-populate': ({ bitmap }, error) => {
    const why = isBlockError(error.cause) ? qemuText(error.cause) : { text: error.message };
    // Told again, with what became of the target.
    if (isBlockError(error.cause) && error.cause.reason === error.reason) return why;
    return `Failed to populate bitmap ${bitmap}: ${why.text}`;
  },
  'image.bitmap-missing': ({ bitmap }) => `Dirty bitmap '${bitmap}' not found`,
  'image.bitmap-sizes': ({ size, other }) =>
    `Bitmaps are of different sizes (destination size is ${size}, source size is ${other}) and can't be merged`,
  'qcow2.bitmap-missing': ({ bitmap }) => `Dirty bitmap '${bitmap}' not found`,
  'qcow2.bitmap-exists': ({ bitmap }) => `Bitmap already exists: ${bitmap}`,
  'qcow2.bitmap-duplicate': ({ bitmap }) => `Bitmap already exists: ${bitmap}`,
  'qcow2.bitmap-inconsistent': ({ bitmap }) => ({
    text: `Bitmap '${bitmap}' is inconsistent and cannot be used`,
    hint: REMEDY,
  }),
  'qcow2.bitmap-name-empty': 'Bitmap name cannot be empty',
  'qcow2.bitmap-granularity': 'Granularity must be power of 2 and at least 512',
  'qcow2.bitmap-version': notPersistent(() => 'Cannot store dirty bitmaps in qcow2 v2 files'),
  'qcow2.bitmap-name-length': notPersistent(({ bound }) => `Name length exceeds maximum (${bound} characters)`),
  'qcow2.bitmap-too-large': notPersistent(
    () => 'Too much space will be occupied by the bitmap. Use larger granularity',
  ),
  'qcow2.bitmap-count': notPersistent(() => 'Maximum number of persistent bitmaps is already reached'),
  'qcow2.bitmap-directory-limit': notPersistent(() => 'Not enough space in the bitmap directory'),
  'qcow2.bitmap-directory-empty': 'Requested bitmap directory size is zero',
  'qcow2.bitmap-directory-broken': 'Broken bitmap directory',
  'qcow2.bitmap-directory-more': 'More bitmaps found than specified in header extension',
  'qcow2.bitmap-directory-less': 'Less bitmaps found than specified in header extension',
  'qcow2.bitmap-extra': 'Bitmap extra data is not supported',
  'qcow2.bitmap-constraints': ({ bitmap }) => `Bitmap '${bitmap}' doesn't satisfy the constraints`,
  'qcow2.bitmap-table': ({ bitmap }) =>
    `Could not read bitmap_table table from image for bitmap '${bitmap}': Invalid argument`,
  'qcow2.snapshot-bitmaps': 'Device has active dirty bitmaps',
};

type Rule = Exclude<TextRule, string>;

function notPersistent(why: (details: Parameters<Rule>[0]) => string): Rule {
  return (details) => `Can't make bitmap '${details['bitmap']}' persistent in '${details['image']}': ${why(details)}`;
}
