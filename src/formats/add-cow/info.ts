/** What `info` says of an image. Keys are written as QEMU writes its own. */
import { divCeil } from '../../bytes/align.ts';
import type { FormatInfo } from '../../core/format.ts';
import { isAllAllocated } from './record.ts';
import type { AddCowState } from './state.ts';

export async function describeAddCow({ header, map, virtualSize }: AddCowState): Promise<FormatInfo> {
  const { clusterSize, backing, backingFormat } = header;
  const total = divCeil(virtualSize, clusterSize);
  // The last cluster may be a part of one, and counts.
  const missing = map === undefined ? 0 : divCeil(await map.missing(), clusterSize);
  return {
    clusterSize,
    dirty: false,
    ...(backing === undefined
      ? {}
      : { backing: { name: backing.text, ...(backingFormat === undefined ? {} : { format: backingFormat }) } }),
    specific: {
      type: 'add-cow',
      data: {
        version: header.version,
        'image-file': header.image.text,
        'image-format': header.imageFormat,
        'all-allocated': isAllAllocated(header),
        'allocated-clusters': total - missing,
        'total-clusters': total,
      },
    },
  };
}
