/** The test format as a driver, as people would write theirs. */
import { bool, choice, defineOptions, size } from '../../src/base/options.ts';
import { defineFormat } from '../../src/core/format.ts';
import { BitmapNode } from './bitmap-format.ts';
import { checkBitmapImage, createBitmapImage, MAGIC } from './bitmap-layout.ts';

export const bitmap = defineFormat({
  name: 'bitmap',
  summary: 'the format that lives in the tests',
  extensions: ['bitmap'],
  capabilities: { create: true, write: true, backing: true, compress: true, check: true, zeroInit: true },
  openOptions: defineOptions({
    transform: choice(['guest', 'host'], { help: 'XOR with a byte made of offsets' }),
  }),
  createOptions: defineOptions({
    unit: size({ default: 1024, min: 512, powerOfTwo: true, help: 'allocation unit' }),
    hasBacking: bool({ default: false, help: 'has a backing file' }),
  }),
  probe: ({ head }) =>
    head.length >= 4 && new DataView(head.buffer, head.byteOffset, head.byteLength).getUint32(0) === MAGIC ? 100 : 0,
  open: async (context, { transform }) => {
    const { file, readOnly, cache, rules } = context;
    const options = { readOnly, budget: cache, transform, ...(rules === undefined ? {} : { rules }) };
    const node = await BitmapNode.open(file, options);
    if (!node.hasBacking) return node;
    const backing = await context.openReference({ role: 'backing', name: 'backing', readOnly: true });
    return await BitmapNode.open(file, { ...options, backing });
  },
  create: async ({ file }, virtualSize, { unit, hasBacking }) => {
    await file.write(0, createBitmapImage(virtualSize, { unit, hasBacking }));
  },
});

export { checkBitmapImage };
