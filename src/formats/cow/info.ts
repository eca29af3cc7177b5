/** What `info` says of a cow image: its layout and how that was found out, and what it records of its backing file. */
import type { FormatInfo } from '../../core/format.ts';
import { type BackingFacts, sizeDiffers, timeDiffers, when } from './backing-facts.ts';
import type { CowDetection } from './detect.ts';
import type { CowHeader } from './header.ts';

export function describeCow(detection: CowDetection, header: CowHeader, facts: BackingFacts): FormatInfo {
  const { geometry, why } = detection;
  const others = detection.candidates.filter(({ layout, passed }) => passed && layout !== detection.layout);
  const data: Record<string, unknown> = {
    layout: header.layout,
    'layout-chosen': why,
    ...(others.length === 0 ? {} : { 'layout-others': others.map(({ layout }) => layout) }),
    'sector-size': header.sectorSize,
    'bitmap-offset': geometry.bitmapOffset,
    'data-offset': geometry.dataOffset,
  };
  if (header.backingName !== undefined) {
    data['backing-mtime-recorded'] = when(facts.recordedMtime);
    data['backing-mtime'] = when(facts.mtime);
    if (facts.recordedSize !== undefined) data['backing-size-recorded'] = facts.recordedSize;
    if (facts.size !== undefined) data['backing-size'] = facts.size;
    data['backing-as-recorded'] = verdict(facts);
  }
  return {
    clusterSize: header.sectorSize,
    ...(header.backingName === undefined ? {} : { backing: { name: header.backingName } }),
    specific: { type: 'cow', data },
  };
}

function verdict(facts: BackingFacts): string {
  if (sizeDiffers(facts)) return 'no, its size differs';
  if (timeDiffers(facts)) return 'no, it was changed since';
  return facts.size === undefined && facts.mtime === undefined ? 'not known' : 'yes';
}
