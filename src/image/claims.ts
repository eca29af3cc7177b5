/** What an image claims of its files, opening after opening. Owns which opening of a file holds the claim, and what is claimed for which use.
 *  Invariants: of two openings of one file by one image, one holds the claim, and it goes from one to the other without a gap; a claim that was
 *  refused leaves the older opening with its own. */
import { BlockError } from '../base/errors.ts';
import type { FormatDriver, Reference } from '../core/format.ts';
import type { BlockNode } from '../core/node.ts';
import {
  ALL_PERMISSIONS,
  backingClaim,
  type Claim,
  dataFileClaim,
  fileClaim,
  imageClaim,
  NO_CLAIM,
  PERMISSION,
} from '../core/permissions.ts';
import type { Layer } from './layer.ts';
import type { OpenImageOptions } from './open-options.ts';
import { reachable } from './reopen.ts';

/** What an open image can ask for later. */
export interface LaterClaims {
  /** Its disk is going to change its size. @throws {@link BlockError} LOCKED. */
  resizing(): void;
  /** Runs `body` while nobody else may use what it changes. @throws {@link BlockError} LOCKED, and what `body` throws. */
  amending<T>(body: () => Promise<T>): Promise<T>;
}

export class Claims implements LaterClaims {
  readonly #options: OpenImageOptions;
  #resizes: boolean;
  #top: { readonly layer: Layer; readonly driver: FormatDriver } | undefined;
  /** By the place in the image: the file that holds the claim. */
  readonly #holders = new Map<string, BlockNode>();
  readonly #taken = new Map<BlockNode, { readonly place: string; readonly claim: Claim }>();

  constructor(options: OpenImageOptions) {
    this.#options = options;
    this.#resizes = options.resizes === true;
  }

  /** Claims the file of a layer, before anything is read for its format.
   *  @throws {@link BlockError} as `FileClaims.claim`; INVALID_ARGUMENT, reason `image.force-share`. */
  takeFile(layer: Layer, driver: FormatDriver): void {
    requireShareable(layer, layer.inherited.readOnly);
    this.take(layer.place, layer.file.node, this.#ofFile(layer, driver));
    if (layer.place === '') this.#top = { layer, driver };
  }

  /** What a layer claims of what it refers to. */
  below(role: Reference['role'], from: Layer, readOnly: boolean): Claim {
    const above = this.#of(from);
    if (role === 'backing') return backingClaim(above);
    if (role === 'header') return fileClaim('header', { ...above, uses: 0 }, readOnly, false);
    return dataFileClaim(above);
  }

  /** @param place tells the files of one image apart: another file at the same place is another opening of the same one
   *  @throws {@link BlockError} as `FileClaims.claim`. */
  take(place: string, file: BlockNode, claim: Claim): void {
    const before = this.#holders.get(place);
    const others = before === undefined || before === file ? [] : lockedFiles(before);
    for (const [i, node] of lockedFiles(file).entries()) node.locks?.claim(claim, others[i]?.locks);
    this.#holders.set(place, file);
    this.#taken.set(file, { place, claim });
  }

  /** Files that serve again, after other openings of them stood in their place. @throws as {@link take}. */
  takeBack(node: BlockNode): void {
    for (const file of reachable(node)) {
      const taken = this.#taken.get(file);
      if (taken !== undefined && this.#holders.get(taken.place) !== file) this.take(taken.place, file, taken.claim);
    }
  }

  /** The file goes back to whoever lent it. */
  release(file: BlockNode): void {
    this.forget(file);
    for (const node of lockedFiles(file)) node.locks?.claim(NO_CLAIM);
  }

  /** It is closed. */
  forget(file: BlockNode): void {
    const taken = this.#taken.get(file);
    if (taken === undefined) return;
    this.#taken.delete(file);
    if (this.#holders.get(taken.place) === file) this.#holders.delete(taken.place);
  }

  resizing(): void {
    this.#resizes = true;
    if (this.#top !== undefined) this.takeFile(this.#top.layer, this.#top.driver);
  }

  async amending<T>(body: () => Promise<T>): Promise<T> {
    if (this.#top?.driver.capabilities.fileUse !== 'header') return await body();
    const { layer, driver } = this.#top;
    // Whoever has read the header would go on with keys that are no longer there.
    const usual = this.#ofFile(layer, driver);
    const alone = PERMISSION.consistentRead + PERMISSION.write;
    this.take(layer.place, layer.file.node, { uses: usual.uses | alone, shares: usual.shares & ~alone });
    try {
      return await body();
    } finally {
      this.take(layer.place, layer.file.node, usual);
    }
  }

  /** What is claimed of a layer. */
  #of({ claim, inherited: { readOnly } }: Layer): Claim {
    const sharesWrites = this.#options.shareWrites ?? true;
    const metadataOnly = this.#isMetadataOnly(readOnly);
    return claim ?? imageClaim({ readOnly, metadataOnly, resizes: this.#resizes, sharesWrites });
  }

  #ofFile(layer: Layer, { capabilities }: FormatDriver): Claim {
    const { readOnly, forceShare } = layer.inherited;
    const use = capabilities.fileUse ?? 'exclusive';
    const claim = fileClaim(use, this.#of(layer), readOnly, this.#isMetadataOnly(readOnly));
    return forceShare ? { ...claim, shares: ALL_PERMISSIONS } : claim;
  }

  #isMetadataOnly(readOnly: boolean): boolean {
    return readOnly && this.#options.metadataOnly === true;
  }
}

/** @throws {@link BlockError} INVALID_ARGUMENT, reason `image.force-share`. */
export function requireShareable({ name, inherited }: Layer, readOnly: boolean): void {
  if (!inherited.forceShare || readOnly) return;
  throw new BlockError('INVALID_ARGUMENT', `"${name}": force-share is for images that are only read`, {
    reason: 'image.force-share',
    details: { name },
  });
}

/** The files with locks that a node reads, through any filters; what images below it read is their own affair. */
export function lockedFiles(node: BlockNode, found: BlockNode[] = []): BlockNode[] {
  if (node.locks !== undefined) found.push(node);
  else if (node.format === undefined) for (const child of node.children) lockedFiles(child.node, found);
  return found;
}
