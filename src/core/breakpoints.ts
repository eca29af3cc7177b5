/** The contract of breakpoints: a filter that can hold requests at named events of the format above it, and whoever tells it to (the `io`
 *  shell). Owns the way from a node to the filter that has them. No I/O.
 *  Invariant: a request that is held goes on when its tag is resumed or removed, or when the filter closes; none is lost. */
import { type BlockNode, childOf } from './node.ts';
import type { BlockEvent } from './store.ts';

/** What happens at a breakpoint. */
export type BreakpointNews = (what: 'held' | 'resumed', tag: string) => void;

export interface Breakpoints {
  /** The next request that announces `event` stops there, under this tag, and the breakpoint is used up. Several of one event stop the same
   *  request, which goes on when each of them was resumed.
   *  @throws {@link BlockError} NOT_FOUND for events there are none of. */
  set(event: BlockEvent, tag: string): void;
  /** Takes every breakpoint of this tag away, and lets the requests go on that are held under it.
   *  @throws {@link BlockError} NOT_FOUND when there is neither. */
  remove(tag: string): void;
  /** Lets the request go on that is held under this tag.
   *  @throws {@link BlockError} NOT_FOUND when none is. */
  resume(tag: string): void;
  /** Whether a request is held under this tag. */
  isHeld(tag: string): boolean;
  /** Tells what happens, from now on. @returns stops it. */
  observe(news: BreakpointNews): () => void;
}

/** The breakpoints nearest to a node, itself first, then down its files; `undefined` where no filter has any. */
export function breakpointsOf(node: BlockNode): Breakpoints | undefined {
  for (let at: BlockNode | undefined = node; at !== undefined; at = childOf(at, 'file')) {
    if (at.breakpoints !== undefined) return at.breakpoints;
  }
  return undefined;
}
