/** add-cow, the driver: metadata apart from data, so that a raw file can have a backing file. Spec: add-cow, v9 and V20.
 *  Opening is: header → image file (whose length is the disk's) → backing file. Opening writes nothing. */
import type { OptionsOf } from '../../base/options.ts';
import { defineFormat, type OpenContext } from '../../core/format.ts';
import { addCowAuditor } from './audit.ts';
import { createAddCow } from './create.ts';
import { openFiles } from './files.ts';
import { readHeader } from './header.ts';
import { isV9 } from './header-v9.ts';
import { isV20 } from './header-v20.ts';
import { measureAddCow } from './measure.ts';
import { AddCowNode } from './node.ts';
import { createOptions, openOptions } from './options.ts';

/** @throws {@link BlockError} WRONG_FORMAT, UNSUPPORTED, CORRUPT as `readHeader`; CORRUPT and REFERENCE_DENIED as `openFiles`. */
async function open(context: OpenContext, _options: OptionsOf<typeof openOptions>): Promise<AddCowNode> {
  const header = await readHeader(context.file, context.name);
  return new AddCowNode(context, header, await openFiles(context, header));
}

export const addCow = defineFormat({
  name: 'add-cow',
  summary: 'QEMU patches of 2011 to 2013: a backing file for raw images, v9 and V20',
  extensions: ['add-cow'],
  // What a kept image file holds is the disk where there is no backing file.
  capabilities: { create: true, write: true, backing: true, compress: false, check: true, zeroInit: false },
  openOptions,
  fileChildren: { 'image-file': 'data' },
  createOptions,
  probe: ({ head }) => (isV9(head) || isV20(head) ? 100 : 0),
  open,
  create: createAddCow,
  measure: measureAddCow,
  auditor: addCowAuditor,
});
