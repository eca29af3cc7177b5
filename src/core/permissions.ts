/** What users of one file do with it, and what they let others do meanwhile: QEMU's permissions, by which programs exclude each other on a live
 *  image. Owns the sets, and which set a file needs by what stands above it. Pure.
 *  Invariants: what a layer claims of its file follows from what its parent claims of the layer alone; a file that holds metadata is never
 *  shared with somebody who writes. */

/** One bit each, at the places that QEMU gives them. */
export const PERMISSION = {
  /** Reading, and getting what one has written or what nobody has changed. */
  consistentRead: 1,
  write: 2,
  /** Writing what is there already. */
  writeUnchanged: 4,
  resize: 8,
} as const;

export const ALL_PERMISSIONS = 15;

/** QEMU's words, by bit. */
export const PERMISSION_NAMES = ['consistent read', 'write', 'write unchanged', 'resize'] as const;

/** Sets of {@link PERMISSION}. */
export interface Claim {
  /** What the claimant does. */
  readonly uses: number;
  /** What everybody else may do. */
  readonly shares: number;
}

/** Nothing is done, and everything allowed. */
export const NO_CLAIM: Claim = { uses: 0, shares: ALL_PERMISSIONS };

/** Emptying a file and writing an image into it. */
export const CREATION_CLAIM: Claim = {
  uses: PERMISSION.write + PERMISSION.resize,
  shares: ALL_PERMISSIONS - PERMISSION.resize,
};

/** Of a layer whose backing file is being changed below it: what it holds then means nothing to anybody. */
export const UNDERMINED_CLAIM: Claim = { uses: PERMISSION.consistentRead, shares: PERMISSION.writeUnchanged };

/** What comes after {@link CREATION_CLAIM}, when the image is being written into the file. */
export function writingClaim(use: FileUse): Claim {
  return use === 'exclusive' ? fileClaim(use, CREATION_CLAIM, false, false) : CREATION_CLAIM;
}

/** What becomes of claims; held for as long as the file is open. */
export type LockState =
  /** Others are kept away as far as the claim says. */
  | 'held'
  /** Nothing has had to be claimed. */
  | 'none'
  /** The caller wants none. */
  | 'off'
  /** They are not to be had here: no native calls, or a file system without locks. */
  | 'unavailable';

/** The locks of an open file. */
export interface FileClaims {
  readonly state: LockState;
  /** Why there are none, for people, as soon as that was found out: by a claim, or by asking for the state. */
  readonly missing: string | undefined;
  /** Claims this instead of what was claimed before. At no moment is less than the smaller of both held, and after a failure it is what it was.
   *  @param from another opening of the same file, whose claim ends with this one's beginning
   *  @throws {@link BlockError} LOCKED, reason `file.locked` or `file.lock-byte`; UNSUPPORTED, reason `file.locking`; as the system. */
  claim(claim: Claim, from?: FileClaims): void;
}

/** How a format treats its file. `exclusive`: metadata is read and written at any time; `header`: metadata is read once, then the file is data;
 *  `passes`: the file's bytes are the disk's. */
export type FileUse = 'exclusive' | 'header' | 'passes';

/** What is claimed of an image by who opens it. */
export interface OpeningUse {
  readonly readOnly: boolean;
  /** Guest data is neither read nor written. */
  readonly metadataOnly: boolean;
  readonly resizes: boolean;
  /** Others may write to it meanwhile, as far as its format does not mind. */
  readonly sharesWrites: boolean;
}

export function imageClaim({ readOnly, metadataOnly, resizes, sharesWrites }: OpeningUse): Claim {
  let uses: number = metadataOnly ? 0 : PERMISSION.consistentRead;
  if (!readOnly) uses |= PERMISSION.consistentRead | PERMISSION.write;
  if (resizes) uses |= PERMISSION.resize;
  return { uses, shares: sharesWrites ? ALL_PERMISSIONS : PERMISSION.consistentRead + PERMISSION.writeUnchanged };
}

/** What a layer claims of its file.
 *  @param layer what its parent claims of the layer */
export function fileClaim(use: FileUse, layer: Claim, readOnly: boolean, metadataOnly: boolean): Claim {
  if (use === 'passes') return layer;
  const reads = metadataOnly ? 0 : PERMISSION.consistentRead;
  const writes = PERMISSION.write + PERMISSION.resize;
  if (use === 'header') return { uses: layer.uses | reads, shares: layer.shares };
  return {
    uses: layer.uses | reads | (readOnly ? 0 : writes),
    shares: (layer.shares | PERMISSION.writeUnchanged) & ~writes,
  };
}

/** What a layer claims of a file that holds its data and no metadata. */
export function dataFileClaim(layer: Claim): Claim {
  const grows = (layer.uses & PERMISSION.write) === 0 ? 0 : PERMISSION.resize;
  return { uses: layer.uses | grows, shares: layer.shares & ~PERMISSION.resize };
}

/** What a layer claims of its backing file: it reads, and lets others write where its own parent does. */
export function backingClaim(layer: Claim): Claim {
  const shares =
    (layer.shares & PERMISSION.write) === 0 ? PERMISSION.consistentRead + PERMISSION.writeUnchanged : ALL_PERMISSIONS;
  return { uses: layer.uses & PERMISSION.consistentRead, shares };
}
