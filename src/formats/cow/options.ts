/** Options of cow images. Data only. */
import { bool, choice, defineOptions, size, text } from '../../base/options.ts';
import { COW_LAYOUT_IDS, CREATABLE_LAYOUT_IDS } from './layouts.ts';

export const openOptions = defineOptions({
  layout: choice(COW_LAYOUT_IDS, {
    content: true,
    help: 'layout of header, bitmap and data; found out when not given',
  }),
  bitmapOffset: size({
    cli: 'bitmap-offset',
    content: true,
    help: 'where the bitmap begins, for files with a mixed-up header (needs layout)',
  }),
  dataOffset: size({
    cli: 'data-offset',
    content: true,
    help: 'where the data begins, for files with a mixed-up header (needs layout)',
  }),
  tail: choice(['strict', 'lenient'], {
    default: 'strict',
    content: true,
    help: 'layouts v1 and v2-uml have no place for the bits of up to 7 last sectors: strict takes these sectors from the backing file, lenient believes the byte behind the bitmap (reading only)',
  }),
  ignoreMismatch: bool({
    cli: 'ignore-mismatch',
    default: false,
    help: 'write even if the backing file has another size or time of change than recorded',
  }),
});

export const createOptions = defineOptions({
  size: size({ help: 'Virtual disk size' }),
  backingFile: text({ help: 'File name of a base image' }),
  backingFormat: text({ cli: 'backing_fmt', help: 'Image format of the base image; not recorded' }),
  layout: choice(CREATABLE_LAYOUT_IDS, {
    help: 'Layout (default: v3; without a backing file, which UML always needs, v2-qemu-x86_64)',
  }),
});
