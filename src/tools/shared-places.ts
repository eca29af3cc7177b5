/** Do two images take a range from the very same bytes of the very same file? Then it is equal, and nobody need read it: overlays of one
 *  base, an overlay and its base, a disk and its own snapshot.
 *  Invariants: files are the same by their identity, never by name, and only where nothing stands between the layer and the file that could
 *  move or change bytes; encrypted bytes are never taken for equal (the keys of the two sides may differ); whoever is in doubt says no. */
import type { Pending } from '../base/async.ts';
import { MappedNode } from '../core/mapped-node.ts';
import { type BlockNode, childOf } from '../core/node.ts';
import { type Run, RunList } from '../core/run.ts';

/** One image's layers, with what must be known of their files. */
export class LayerPlaces {
  readonly #layers: readonly RunCursor[];
  readonly #identities: ReadonlyMap<BlockNode, string>;

  private constructor(layers: readonly RunCursor[], identities: ReadonlyMap<BlockNode, string>) {
    this.#layers = layers;
    this.#identities = identities;
  }

  static async of(top: BlockNode): Promise<LayerPlaces> {
    const layers: MappedNode[] = [];
    // What stands below anything else than a layer is not counted by depth alone.
    for (let at: BlockNode | undefined = top; at instanceof MappedNode; at = childOf(at, 'backing')) layers.push(at);
    const identities = new Map<BlockNode, string>();
    for (const { node } of layers.flatMap(({ children }) => children)) {
      const identity = node.children.length === 0 ? (await node.status?.())?.identity : undefined;
      if (identity !== undefined) identities.set(node, identity);
    }
    return new LayerPlaces(
      layers.map((layer) => new RunCursor(layer)),
      identities,
    );
  }

  /** The layer that many below the top; `undefined` where it cannot be told. */
  layer(depth: number): RunCursor | undefined {
    return this.#layers[depth];
  }

  identityOf(node: BlockNode | undefined): string | undefined {
    return node === undefined ? undefined : this.#identities.get(node);
  }

  /** Identity of the file with the layer's metadata. */
  headerOf({ node }: RunCursor): string | undefined {
    return this.identityOf(childOf(node, 'file'));
  }
}

/** Walks over the runs of one layer. */
export class RunCursor {
  readonly node: MappedNode;
  readonly #runs = new RunList(256);
  #index = 0;

  constructor(node: MappedNode) {
    this.node = node;
    this.#runs.reset(-1, -1);
  }

  /** Moves to `offset`, which lies within the layer. Forward only is fast. */
  seek(offset: number): Pending {
    const runs = this.#runs;
    if (runs.count > 0 && offset >= runs.guestStart && offset < runs.guestEnd) {
      this.#find(offset);
      return undefined;
    }
    runs.reset(offset, this.node.size);
    this.#index = 0;
    return this.node.format.map(offset, this.node.size - offset, runs);
  }

  /** The run that holds the place where `seek` went. */
  get run(): Run {
    return this.#runs.at(this.#index);
  }

  #find(offset: number): void {
    const runs = this.#runs;
    if (runs.at(this.#index).guestOffset > offset) this.#index = 0;
    for (let run = runs.at(this.#index); run.guestOffset + run.length <= offset; run = runs.at(++this.#index));
  }
}

/** How far from `offset` on both images have the same bytes in the same place. The layers are those that decide the byte at `offset`.
 *  `end` is how far the answer holds. */
export class SharedPlaces {
  same = false;
  end = 0;
  readonly #a: LayerPlaces;
  readonly #b: LayerPlaces;
  readonly #files = new Set<string>();

  constructor(a: LayerPlaces, b: LayerPlaces) {
    this.#a = a;
    this.#b = b;
  }

  async seek(offset: number, depthA: number, depthB: number): Promise<void> {
    const [a, b] = [this.#a.layer(depthA), this.#b.layer(depthB)];
    this.same = false;
    this.end = Number.POSITIVE_INFINITY;
    if (a === undefined || b === undefined || !this.#mayShare(a, b)) return;
    for (const layer of [a, b]) {
      const seeking = layer.seek(offset);
      if (seeking !== undefined) await seeking;
    }
    const [x, y] = [a.run, b.run];
    this.end = Math.min(x.guestOffset + x.length, y.guestOffset + y.length);
    this.same = this.#isSame(a, x, b, y, offset);
  }

  /** They have a file in common: else no run need be looked up. */
  #mayShare(a: RunCursor, b: RunCursor): boolean {
    if (a.node.format.transform !== undefined || b.node.format.transform !== undefined) return false;
    this.#files.clear();
    for (const { role, node } of a.node.children) {
      const identity = role === 'backing' ? undefined : this.#a.identityOf(node);
      if (identity !== undefined) this.#files.add(identity);
    }
    return b.node.children.some(
      ({ role, node }) => role !== 'backing' && this.#files.has(this.#b.identityOf(node) ?? ''),
    );
  }

  #isSame(a: RunCursor, x: Run, b: RunCursor, y: Run, offset: number): boolean {
    if (x.kind !== y.kind || x.hostOffset < 0 || y.hostOffset < 0) return false;
    const file = this.#a.identityOf(a.node.children[x.child]?.node);
    if (file === undefined || file !== this.#b.identityOf(b.node.children[y.child]?.node)) return false;
    if (x.kind === 'data') return x.hostOffset + (offset - x.guestOffset) === y.hostOffset + (offset - y.guestOffset);
    if (x.kind !== 'encoded') return false;
    // How it is to be decoded the header says: it must be the same one.
    const header = this.#a.headerOf(a);
    return (
      header !== undefined &&
      header === this.#b.headerOf(b) &&
      a.node.driver === b.node.driver &&
      x.hostOffset === y.hostOffset &&
      x.encodedLength === y.encodedLength
    );
  }
}
