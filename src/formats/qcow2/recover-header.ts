/** What the whole of a damaged image depends on: cluster size, widths, version, size. From the header where it stands; else from what the caller
 *  knows, and from the tables of the file. Spec: qcow2, "Header".
 *  Invariants: a header counts as whole only if it passes every check of an ordinary open; a guess is made only from bytes that no writer but qcow2's
 *  leaves behind, and is always noted. */
import { BlockError, hex, isBlockError } from '../../base/errors.ts';
import { bool, choice, defineOptions, int, type OptionsOf, size } from '../../base/options.ts';
import { log2Exact } from '../../bytes/align.ts';
import { isZero } from '../../bytes/zeros.ts';
import type { CompressionType } from '../../codec/codecs.ts';
import type { OpenContext } from '../../core/format.ts';
import type { RecoveryRequest } from '../../core/recovery.ts';
import { entryOffset, isCopied, l1HasReserved, subclustersConflict } from './entries.ts';
import { type Geometry, geometryOf, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS } from './geometry.ts';
import { hasDataFile, headerGeometry, type Qcow2Header, readHeader } from './header.ts';
import { readDataOf } from './recover-scan.ts';

export const recoverOptions = defineOptions({
  clusterSize: size({ help: 'Cluster size', min: 2 ** MIN_CLUSTER_BITS, max: 2 ** MAX_CLUSTER_BITS, powerOfTwo: true }),
  size: size({ help: 'Virtual disk size' }),
  compat: choice(['v2', 'v3'], { synonyms: { '0.10': 'v2', '1.1': 'v3' }, help: 'Compatibility level' }),
  extendedL2: bool({ help: 'Extended L2 tables' }),
  refcountBits: int({ help: 'Width of a reference count entry in bits', min: 1, max: 64, powerOfTwo: true }),
  compressionType: choice(['zlib', 'zstd'], { help: 'Compression method' }),
  ignoreHeader: bool({ default: false, help: 'Do not believe the header' }),
});

export type RecoverOptions = OptionsOf<typeof recoverOptions>;

/** The frame of an image. */
export interface Frame {
  /** `undefined`: lost. */
  readonly header: Qcow2Header | undefined;
  readonly geometry: Geometry;
  readonly version: 2 | 3;
  /** `undefined`: as far as the tables reach. */
  readonly virtualSize: number | undefined;
  /** `undefined`: the first compressed cluster tells. */
  readonly compression: CompressionType | undefined;
  readonly dataFile: boolean;
}

const SECTOR = 512;
const WORDS = SECTOR / 8;

/** @throws {@link BlockError} UNSUPPORTED `qcow2.recover-encrypted`; CORRUPT `qcow2.recover-cluster-size` when nothing tells it. */
export async function findFrame(context: OpenContext, request: RecoveryRequest, notes: string[]): Promise<Frame> {
  const given = request.options as RecoverOptions;
  const header = given.ignoreHeader ? undefined : await wholeHeader(context, given, notes);
  if (given.ignoreHeader) notes.push('the header is not believed, as asked');
  if (header !== undefined) {
    return {
      header,
      geometry: headerGeometry(header),
      version: header.version,
      virtualSize: given.size ?? header.virtualSize,
      compression: header.compressionType,
      dataFile: hasDataFile(header),
    };
  }
  const extendedL2 = given.extendedL2;
  const guess =
    given.clusterSize !== undefined && extendedL2 !== undefined
      ? { clusterBits: log2Exact(given.clusterSize), extendedL2 }
      : await guessShape(context, request);
  const geometry = frameGeometry(guess, given, context.name);
  notes.push(
    `taken for an image with clusters of ${geometry.clusterSize} bytes${geometry.extendedL2 ? ' and extended L2 tables' : ''}, refcounts of ${geometry.refcountBits} bits`,
  );
  const compression = given.compressionType;
  return {
    header: undefined,
    geometry,
    version: given.compat === 'v2' ? 2 : 3,
    virtualSize: given.size,
    compression: compression === undefined ? undefined : compression === 'zstd' ? 'zstd' : 'deflate',
    dataFile: false,
  };
}

function frameGeometry(guess: Shape, given: RecoverOptions, name: string): Geometry {
  const clusterBits = given.clusterSize === undefined ? guess.clusterBits : log2Exact(given.clusterSize);
  if (clusterBits === 0) {
    throw new BlockError(
      'CORRUPT',
      `qcow2 "${name}": the header is lost and no table tells the cluster size; give it`,
      {
        reason: 'qcow2.recover-cluster-size',
      },
    );
  }
  return geometryOf({
    clusterBits,
    extendedL2: (given.extendedL2 ?? guess.extendedL2) && clusterBits >= 14,
    refcountOrder: given.refcountBits === undefined ? 4 : log2Exact(given.refcountBits),
  });
}

async function wholeHeader(
  { file, name }: OpenContext,
  given: RecoverOptions,
  notes: string[],
): Promise<Qcow2Header | undefined> {
  let header: Qcow2Header;
  try {
    header = await readHeader(file, name, { readOnly: true, forCheck: true });
  } catch (error) {
    if (!isBlockError(error) || error.code === 'IO' || error.code === 'ABORTED') throw error;
    notes.push(`the header is lost: ${error.message}`);
    return undefined;
  }
  if (header.encryption !== 'none') {
    throw new BlockError(
      'UNSUPPORTED',
      `qcow2 "${name}": encrypted (${header.encryption}); whatever a wrong place holds decrypts to something, so nothing recovered could be told right from wrong`,
      { reason: 'qcow2.recover-encrypted', details: { encryption: header.encryption } },
    );
  }
  const clash = contradiction(header, given);
  if (clash === undefined) return header;
  notes.push(`the header is not believed: it says ${clash}`);
  return undefined;
}

/** What the header says that the caller knows to be otherwise. */
function contradiction(header: Qcow2Header, given: RecoverOptions): string | undefined {
  const { clusterSize, extendedL2, refcountBits } = headerGeometry(header);
  if (given.clusterSize !== undefined && given.clusterSize !== clusterSize) return `cluster size ${hex(clusterSize)}`;
  if (given.extendedL2 !== undefined && given.extendedL2 !== extendedL2) return `extended L2 ${extendedL2}`;
  if (given.refcountBits !== undefined && given.refcountBits !== refcountBits) return `refcount bits ${refcountBits}`;
  if (given.compat !== undefined && given.compat !== `v${header.version}`) return `version ${header.version}`;
  return undefined;
}

interface Shape {
  /** 0: nothing tells. */
  readonly clusterBits: number;
  readonly extendedL2: boolean;
}

/** Half of all clusters lie at odd multiples of the cluster size: the lowest bit of most offsets in tables is the cluster size. */
async function guessShape(context: OpenContext, request: RecoveryRequest): Promise<Shape> {
  const { file } = context;
  const standard = new Tally(file.size, false);
  const extended = new Tally(file.size, true);
  await readDataOf(file, SECTOR, { ...request, phase: 'looking for the cluster size' }, (_, bytes) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let at = 0; at + SECTOR <= bytes.length; at += SECTOR) {
      if (isZero(bytes, at, at + SECTOR)) continue;
      if (!standard.add(view, at)) extended.add(view, at);
    }
  });
  const best = extended.total > standard.total ? extended : standard;
  return { clusterBits: best.clusterBits, extendedL2: best === extended };
}

/** Offsets in sectors that can be part of a table, by their lowest bit. */
class Tally {
  readonly #fileSize: number;
  readonly #step: number;
  readonly #byBit = new Float64Array(MAX_CLUSTER_BITS + 1);
  total = 0;

  constructor(fileSize: number, extended: boolean) {
    this.#fileSize = fileSize;
    this.#step = extended ? 2 : 1;
  }

  /** @returns whether the sector can be part of a table. */
  add(view: DataView, at: number): boolean {
    const bits: number[] = [];
    for (let word = 0; word < WORDS; word += this.#step) {
      const high = view.getUint32(at + word * 8);
      const low = view.getUint32(at + word * 8 + 4);
      if (this.#step === 2) {
        const zero = view.getUint32(at + word * 8 + 8);
        const allocated = view.getUint32(at + word * 8 + 12);
        if (subclustersConflict(allocated, zero) || (high === 0 && low === 0 && allocated !== 0)) return false;
      }
      if (high === 0 && low <= 1) continue;
      // Entries without COPIED are too much like other things.
      if (!isCopied(high) || l1HasReserved(high, low)) return false;
      const offset = entryOffset(high, low);
      if (offset < SECTOR || offset >= this.#fileSize) return false;
      bits.push(lowestBitOf(offset));
    }
    for (const bit of bits) {
      if (bit > MAX_CLUSTER_BITS) continue;
      this.#byBit[bit] = (this.#byBit[bit] as number) + 1;
      this.total++;
    }
    return bits.length > 0;
  }

  get clusterBits(): number {
    let best = 0;
    for (let bit = MIN_CLUSTER_BITS; bit <= MAX_CLUSTER_BITS; bit++) {
      if ((this.#byBit[bit] as number) > (this.#byBit[best] as number)) best = bit;
    }
    return best;
  }
}

function lowestBitOf(offset: number): number {
  let bit = MIN_CLUSTER_BITS;
  while (bit <= MAX_CLUSTER_BITS && offset % 2 ** (bit + 1) === 0) bit++;
  return bit;
}
