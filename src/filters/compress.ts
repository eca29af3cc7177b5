/** compress: what is written through it is stored compressed. Whole units only, so smaller writes read, change and write what is around them.
 *  Invariants: nothing but writes is changed; zeros and discards go on as they are. */

import type { Pending } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { defineFilter } from '../core/filter.ts';
import type { BlockNode } from '../core/node.ts';
import type { WriteOptions } from '../core/store.ts';
import { AlignedNode, NO_REQUIREMENTS } from './aligned-node.ts';

class CompressNode extends AlignedNode {
  constructor(name: string, file: BlockNode, unit: number) {
    super(name, 'compress', file, { ...NO_REQUIREMENTS, requestAlign: unit });
  }

  protected override writeAligned(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.inner.write(offset, from, { ...options, compressed: true });
  }
}

export const compress = defineFilter({
  name: 'compress',
  summary: 'stores what is written compressed',
  children: [{ name: 'file', role: 'file', probed: 'as-filter' }],
  openOptions: {},
  listOptions: {},

  open(context) {
    const [file] = context.children('file') as [BlockNode];
    const { format } = file;
    if (format?.writeCompressed === undefined) {
      const name = format?.format ?? file.driver;
      throw new BlockError('UNSUPPORTED', `compress: ${name} "${file.name}" cannot store compressed data`, {
        reason: 'compress.format',
        details: { format: name },
      });
    }
    return Promise.resolve(new CompressNode(context.name, file, format.unit));
  },
});
