/** What the parts of an open add-cow image share. Owns the mapping: a presence map, or the whole image file.
 *  Invariant: `map` is there exactly while the bitmap counts. */
import type { EngineServices, OpenContext } from '../../core/format.ts';
import type { BlockNode } from '../../core/node.ts';
import { PresenceMap } from '../../core/presence-map.ts';
import type { AddCowFiles } from './files.ts';
import { fault, presenceGeometry } from './layout.ts';
import { type AddCowHeader, isAllAllocated } from './record.ts';

/** Index of the image file among the children. */
export const DATA = 1;

export class AddCowState {
  readonly name: string;
  readonly readOnly: boolean;
  readonly file: BlockNode;
  readonly data: BlockNode;
  readonly backing: BlockNode | undefined;
  header: AddCowHeader;
  virtualSize: number;
  /** `undefined`: everything is allocated, the image file is the disk. */
  map: PresenceMap | undefined;
  engine: EngineServices | undefined;

  constructor(context: OpenContext, header: AddCowHeader, { data, backing, virtualSize }: AddCowFiles) {
    const { name, readOnly, file } = context;
    this.name = name;
    this.readOnly = readOnly;
    this.file = file;
    this.data = data;
    this.backing = backing;
    this.header = header;
    this.virtualSize = virtualSize;
    if (isAllAllocated(header)) return;
    this.map = new PresenceMap({
      file,
      data,
      child: DATA,
      hasBacking: backing !== undefined,
      readOnly,
      budget: context.cache,
      rules: context.rules,
      unsafe: context.unsafe,
      geometry: presenceGeometry(header, virtualSize),
      refuseTail: (offset) => fault(name, 'no-bit', `offset ${offset} has no bit`, { offset }, 'INTERNAL'),
    });
  }

  /** Nothing may run. Forgets what was read of the bitmap, and goes on with a disk of that size. */
  async reshape(virtualSize: number): Promise<void> {
    await this.map?.reshape(presenceGeometry(this.header, virtualSize));
    this.virtualSize = virtualSize;
  }
}
