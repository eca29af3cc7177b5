/** The driver of quorum: options, and what they must be. Behaviour and checks: QEMU's.
 *  Invariant: a quorum is only opened over children of one size. */
import { BlockError } from '../base/errors.ts';
import { bool, choice, defineOptions, int } from '../base/options.ts';
import { defineFilter } from '../core/filter.ts';
import type { BlockNode } from '../core/node.ts';
import { QuorumNode } from './quorum.ts';

/** QEMU keeps the threshold in an int, in which larger numbers are negative. */
const THRESHOLD_LIMIT = 2 ** 31;

export const quorum = defineFilter({
  name: 'quorum',
  summary: 'several disks with one content: writes go to all, reads are put to the vote',
  children: [{ name: 'children', role: 'file', list: true, probed: 'always' }],
  openOptions: defineOptions({
    voteThreshold: int({ cli: 'vote-threshold', default: 0, help: 'how many children must agree' }),
    blkverify: bool({ default: false, help: 'two children of which every difference is an error' }),
    rewriteCorrupted: bool({
      cli: 'rewrite-corrupted',
      default: false,
      help: 'give children that were outvoted what the others hold',
    }),
    readPattern: choice(['quorum', 'fifo'], {
      cli: 'read-pattern',
      default: 'quorum',
      help: 'read all children and vote, or the first one that answers',
      reason: 'quorum.read-pattern',
    }),
  }),
  listOptions: {},
  async open(context, options) {
    const { name, readOnly } = context;
    const nodes = context.children('children');
    const threshold = options.voteThreshold;
    const { readPattern } = options;
    // Nobody votes about what one child alone is asked for.
    const isVoted = readPattern === 'quorum';
    const blkverify = isVoted && options.blkverify;
    const rewriteCorrupted = isVoted && options.rewriteCorrupted;
    if (nodes.length === 0) throw refused(name, 'children', 'has no children; give at least one', {});
    if (threshold < 1 || threshold >= THRESHOLD_LIMIT) {
      throw refused(name, 'threshold', `vote-threshold ${threshold} is less than 1`, { threshold });
    }
    if (threshold > nodes.length) {
      const what = `vote-threshold ${threshold} is more than its ${nodes.length} children`;
      throw refused(name, 'threshold-high', what, { threshold, children: nodes.length });
    }
    if (blkverify && (nodes.length !== 2 || threshold !== 2)) {
      throw refused(name, 'blkverify', 'blkverify needs two children and vote-threshold 2', {});
    }
    if (blkverify && rewriteCorrupted) {
      throw refused(name, 'blkverify-rewrite', 'rewrite-corrupted and blkverify exclude each other', {});
    }
    if (rewriteCorrupted && readOnly) {
      throw new BlockError('READ_ONLY', `quorum "${name}": rewrite-corrupted writes, and the node is read-only`, {
        reason: 'store.read-only',
      });
    }
    requireOneSize(name, nodes);
    const { report } = context;
    return new QuorumNode(name, nodes, {
      threshold,
      blkverify,
      rewriteCorrupted,
      readPattern: isVoted ? 'quorum' : 'fifo',
      report: (event) => report.call(context, event),
    });
  },
});

function requireOneSize(name: string, nodes: readonly BlockNode[]): void {
  const sizes = nodes.map(({ size }) => size);
  if (sizes.every((size) => size === sizes[0])) return;
  throw new BlockError('IO', `quorum "${name}": the children differ in size: ${sizes.join(', ')} bytes`, {
    reason: 'quorum.sizes',
    details: { sizes, errno: 'EIO' },
  });
}

function refused(name: string, finding: string, what: string, details: Readonly<Record<string, unknown>>): BlockError {
  return new BlockError('OPTION', `quorum "${name}": ${what}`, { reason: `quorum.${finding}`, details });
}
