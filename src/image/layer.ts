/** One image of a chain, on the way from the top to the one that is being opened, and the rule that no file is met twice on that way. */
import { BlockError } from '../base/errors.ts';
import type { Claim } from '../core/permissions.ts';
import type { NodeSpec } from './graph.ts';
import type { NodeTitle } from './graph-name.ts';
import type { Inherited, OpenedNode } from './graph-nodes.ts';

export interface Layer {
  /** What messages call it. */
  readonly name: string;
  /** Where names in it start from; `undefined` where it has no place of its own. */
  readonly location: string | undefined;
  /** Protocol and name, for telling files apart where the protocol has no identities. */
  readonly key: string;
  readonly file: OpenedNode;
  /** What the caller says of it, where anything. */
  readonly spec: NodeSpec | undefined;
  readonly inherited: Inherited;
  /** 1 for the top. */
  readonly depth: number;
  readonly above: Layer | undefined;
  /** Where it is in the image, empty for the top: files are told apart by it when they are opened anew. */
  readonly place: string;
  /** What the layer above claims of it; of what has none above, the caller. */
  readonly claim: Claim | undefined;
  /** What stands for recorded files, by the names that options call them; `null` for a backing file that there is not to be. */
  readonly overrides: Map<string, NodeTitle | null>;
}

export function keyOf(protocol: string, name: string): string {
  return `${protocol}\0${name}`;
}

/** @throws {@link BlockError} CHAIN, reason `chain.cycle`, when the file is already part of the path to the top. */
export function requireNew(from: Layer, key: string, identity: string | undefined, name: string): void {
  for (let at: Layer | undefined = from; at !== undefined; at = at.above) {
    if (at.key === key || (identity !== undefined && at.file.identity === identity)) {
      throw new BlockError(
        'CHAIN',
        `"${from.name}": refers to "${name}", which is "${at.name}" again: the chain is a loop`,
        {
          reason: 'chain.cycle',
          details: { name, from: from.name, again: at.name },
        },
      );
    }
  }
}
