/** The graph: named ByteStores with children in named roles. Types and walks only; nodes are fixed once opened. */

import type { Breakpoints } from './breakpoints.ts';
import type { FormatNode } from './format.ts';
import type { FileClaims } from './permissions.ts';
import type { ByteStore } from './store.ts';

/** What a child is to its parent. `file`: metadata (and data, unless there is a data child). `header`: metadata apart from the file. */
export type ChildRole = 'file' | 'data' | 'backing' | 'extent' | 'header';

export interface Child {
  readonly role: ChildRole;
  /** `file`, `backing`, `data-file`, `header`, … as QEMU names it. */
  readonly name: string;
  readonly node: BlockNode;
}

/** A ByteStore in a graph. */
export interface BlockNode extends ByteStore {
  /** The name messages and `map` show: the file name as the user gave it, or as the reference resolved. */
  readonly name: string;
  /** `file`, `qcow2`, `raw`, … */
  readonly driver: string;
  readonly children: readonly Child[];
  /** The format behind this node, where it is an opened image. */
  readonly format?: FormatNode;
  /** Filters that can hold requests at events. */
  readonly breakpoints?: Breakpoints | undefined;
  /** Of a file that other processes may use, too. */
  readonly locks?: FileClaims | undefined;
}

export function childOf(node: { readonly children: readonly Child[] }, role: ChildRole): BlockNode | undefined {
  return node.children.find((child) => child.role === role)?.node;
}

/** The image that stands below a node, through any filters, or that the node is itself. */
export function formatBelow(node: BlockNode): FormatNode | undefined {
  const below = node.children[0]?.node;
  return node.format ?? (below === undefined ? undefined : formatBelow(below));
}

/** The node and its backing files, top first. */
export function backingChain(top: BlockNode): BlockNode[] {
  const chain: BlockNode[] = [];
  for (let at: BlockNode | undefined = top; at !== undefined; at = childOf(at, 'backing')) chain.push(at);
  return chain;
}
