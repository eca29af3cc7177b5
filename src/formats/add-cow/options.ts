/** Create options of add-cow, under the names of its patches (`backing_file`, `image_file`), and `compat` as qcow2 has it. Spec: add-cow,
 *  rows. Invariant: nothing is applied here. */
import { choice, defineOptions, type OptionsOf, size, text } from '../../base/options.ts';
import { KiB } from '../../base/sizes.ts';

export const openOptions = defineOptions({});

export const createOptions = defineOptions({
  size: size({ help: 'Virtual disk size' }),
  compat: choice(['v9', 'v20'], {
    default: 'v20',
    help: 'Format version (v9: names of 1023 bytes, raw image file; v20: the last one)',
    reason: 'add-cow.compat',
  }),
  backingFile: text({ help: 'File name of a base image' }),
  backingFmt: text({ help: 'Image format of the base image (v9 does not record it)' }),
  imageFile: text({ help: 'File name of the image that holds the data; made when it is not there' }),
  imageFmt: text({ help: 'Image format of the image file (v20)' }),
  clusterSize: size({ default: 64 * KiB, help: 'add-cow cluster size (v20: 4 KiB to 2 MiB)' }),
});

export type AddCowCreateOptions = OptionsOf<typeof createOptions>;
