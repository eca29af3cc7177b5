/** QEMU's sentences for throttle, quorum, copy-on-read, preallocate, blklogwrites and the null drivers. Data only. */
import { ERRNO_TEXT } from '../../base/errors.ts';
import type { TextRule } from './qemu-text.ts';

export const FILTER_TEXTS: Readonly<Record<string, TextRule>> = {
  'throttle.group-missing': 'Please specify a throttle group',
  'throttle.group': ({ group }) => `Throttle group '${group}' does not exist`,
  'throttle.conflict': 'bps/iops/max total values and read/write values cannot be used at the same time',
  'throttle.size-alone': 'iops size requires an iops value to be set',
  'throttle.range': 'bps/iops/max values must be within [0, 1000000000000000]',
  'throttle.length-range': ({ name }) => `${name} value must be in the range [0, 4294967295]`,
  'throttle.burst-length': 'the burst length cannot be 0',
  'throttle.burst-length-alone': 'burst length set without burst rate',
  'throttle.burst-too-long': 'burst length too high for this burst rate',
  'throttle.burst-alone': 'bps_max/iops_max require corresponding bps/iops values',
  'throttle.burst-low': 'bps_max/iops_max cannot be lower than bps/iops',
  'quorum.children': 'Number of provided children must be 1 or more',
  'quorum.threshold': "Parameter 'vote-threshold' expects a value >= 1",
  'quorum.threshold-high': 'threshold may not exceed children count',
  'quorum.read-pattern': 'Please set read-pattern as fifo or quorum',
  'quorum.blkverify': 'blkverify=on can only be set if there are exactly two files and vote-threshold is 2',
  'quorum.blkverify-rewrite': 'rewrite-corrupted=on cannot be used with blkverify=on',
  'quorum.sizes': `Could not refresh total sector count: ${ERRNO_TEXT['EIO']}`,
  'quorum.mismatch': ({ offset, length, at }) =>
    `quorum: offset=${offset} bytes=${length} contents mismatch at offset ${at}`,
  'copy-on-read.bottom': ({ bottom }) => `Bottom node '${bottom}' not found`,
  'copy-on-read.bottom-filter': ({ bottom }) => `Bottom node '${bottom}' is a filter`,
  'preallocate.align': 'prealloc-align parameter of preallocate filter is not aligned to 512',
  'preallocate.align-below': ({ requestAlign }) =>
    `prealloc-align parameter of preallocate filter is not aligned to underlying node request alignment (${requestAlign})`,
  'blklogwrites.append-sector': 'log-append and log-sector-size are mutually exclusive',
  'blklogwrites.sector': ({ sector }) => `Invalid log sector size ${sector}`,
  'blklogwrites.interval': ({ interval }) => `Invalid log superblock update interval ${interval}`,
  'blklogwrites.magic': 'Invalid log superblock magic',
  'blklogwrites.version': ({ version }) => `Unsupported log version ${version}`,
  'blklogwrites.flags': ({ flags, entry }) =>
    `Invalid flags 0x${typeof flags === 'bigint' ? flags.toString(16) : flags} in log entry ${entry}`,
  'blklogwrites.entry': ({ entry }) => `Failed to read log entry ${entry}: ${ERRNO_TEXT['EIO']}`,
  'graph.list': ({ name }) => `Option ${name} is not a valid array`,
  'null.name': ({ driver }) => `The only allowed filename for this driver is '${driver}://'`,
  'null.latency': 'latency-ns is invalid',
};
