/** Opening an image anew while it stays open: with other settings, or because another program has written to it.
 *  Owns the order: what was asked is looked at; the present opening is closed, or forgotten; the next one is made by the same path as any; and
 *  where that fails, the present one is made again as it was.
 *  Invariants: it happens between requests; after a failure the image is open with its old settings, or refuses every request; files that
 *  nothing uses any more are closed, others are not opened twice. */
import { BlockError } from '../base/errors.ts';
import type { DiscardMode, FormatDriver, FormatNode } from '../core/format.ts';
import type { MappedNode } from '../core/mapped-node.ts';
import type { BlockNode } from '../core/node.ts';

/** What can be changed. What is not given stays. */
export interface ReopenOptions {
  readonly readOnly?: boolean | undefined;
  /** Open options of the format, by their TypeScript names; `undefined` as a value takes one back to its default. */
  readonly options?: Readonly<Record<string, unknown>> | undefined;
  readonly discard?: DiscardMode | undefined;
}

/** How an image is open. */
export interface OpenSettings {
  readonly readOnly: boolean;
  options(): Readonly<Record<string, unknown>>;
  readonly discard: DiscardMode | undefined;
}

/** What the front door lends. */
export interface ReopenHost {
  readonly driver: FormatDriver;
  /** @throws OPTION, and whatever forbids the settings, before anything is touched. */
  require(settings: OpenSettings): void;
  /** Opens the format, over the files that are open where they serve.
   *  @param anew the files of the image are opened anew, whatever is open */
  open(settings: OpenSettings, anew: boolean): Promise<FormatNode>;
  /** Closes what was opened by name and is no part of the image any more. */
  closeUnused(node: MappedNode): Promise<void>;
}

/** The openings of one image, one after the other. */
export class Reopener {
  readonly #host: ReopenHost;
  #settings: OpenSettings;

  constructor(host: ReopenHost, settings: OpenSettings) {
    this.#host = host;
    this.#settings = settings;
  }

  get settings(): OpenSettings {
    return this.#settings;
  }

  /** @throws what opening throws. */
  async reopen(node: MappedNode, changes: ReopenOptions): Promise<void> {
    await this.#run(node, (present) => {
      const next = changed(present, changes);
      this.#host.require(next);
      return next;
    });
  }

  /** Nothing that is in memory is true any more.
   *  @throws what opening throws; UNSUPPORTED, reason `image.invalidate`, for formats that cannot forget what they have not written. */
  async invalidate(node: MappedNode): Promise<void> {
    if (!node.format.readOnly && node.format.forget === undefined) {
      const { name } = this.#host.driver;
      throw new BlockError('UNSUPPORTED', `${name} "${node.name}": cannot forget what it has not written`, {
        reason: 'image.invalidate',
        details: { format: name },
      });
    }
    await this.#run(node, undefined);
  }

  /** @param change the next settings; `undefined`: the same, and what is in memory is forgotten */
  async #run(node: MappedNode, change: ((present: OpenSettings) => OpenSettings) | undefined): Promise<void> {
    let failure: { readonly error: unknown } | undefined;
    await node.replaceFormat(async (present) => {
      const before = this.#settings;
      const next = change?.(before) ?? before;
      if (change !== undefined) await present.flush();
      try {
        if (change !== undefined) await present.close();
        await present.forget?.();
        const format = await this.#host.open(next, change === undefined);
        this.#settings = next;
        return { format, discard: next.discard };
      } catch (error) {
        failure = { error };
        return { format: await this.#restore(node, before), discard: before.discard };
      }
    });
    if (failure === undefined) {
      await this.#host.closeUnused(node);
      return;
    }
    // The failure that led here is the one to tell.
    await this.#host.closeUnused(node).catch(() => undefined);
    throw failure.error;
  }

  /** The image as it was. */
  async #restore(node: MappedNode, before: OpenSettings): Promise<FormatNode> {
    try {
      return await this.#host.open(before, false);
    } catch (error) {
      const lost = new BlockError(
        'IO',
        `"${node.name}": could neither be opened anew nor as it was: ${error instanceof Error ? error.message : String(error)}`,
        { reason: 'image.reopen-lost', cause: error },
      );
      node.condemn(lost);
      throw lost;
    }
  }
}

function changed(present: OpenSettings, { readOnly, options, discard }: ReopenOptions): OpenSettings {
  const entries = Object.entries({ ...present.options(), ...options }).filter(([, value]) => value !== undefined);
  const merged = Object.fromEntries(entries);
  return {
    readOnly: readOnly ?? present.readOnly,
    options: () => merged,
    discard: discard ?? present.discard,
  };
}

/** Everything that a node reads from, itself included. */
export function reachable(node: BlockNode, found: Set<BlockNode> = new Set()): Set<BlockNode> {
  if (found.has(node)) return found;
  found.add(node);
  for (const child of node.children) reachable(child.node, found);
  return found;
}
