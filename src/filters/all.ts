/** Every filter there is. A filter is found by its name; the order has no meaning. */
import type { FilterDriver } from '../core/filter.ts';
import { blkdebug } from './blkdebug.ts';
import { blklogwrites } from './blklogwrites.ts';
import { blkverify } from './blkverify.ts';
import { compress } from './compress.ts';
import { copyOnRead } from './copy-on-read.ts';
import { preallocate } from './preallocate.ts';
import { quorum } from './quorum-driver.ts';
import { throttle } from './throttle.ts';

export const ALL_FILTERS: readonly FilterDriver[] = [
  blkdebug,
  blklogwrites,
  blkverify,
  compress,
  copyOnRead,
  preallocate,
  quorum,
  throttle,
];
