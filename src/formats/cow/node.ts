/** An open cow image: a FormatNode over the presence map. Spec: "Common model", "mtime and size checks".
 *  Owns the life cycle and what the header records of the backing file; where a sector is, is the map's business.
 *  Invariants: the layout of an existing file is never changed; sectors without a bit of their own are never written;
 *  write order: data → flush → bits → flush; the header is written by `changeBacking` alone. */
import type { MaybePromise, Pending } from '../../base/async.ts';
import { BlockError, hex, isBlockError } from '../../base/errors.ts';
import type {
  BackingRecord,
  CheckFacet,
  EngineServices,
  FormatInfo,
  FormatNode,
  OpenContext,
  ReferenceStatus,
  WritePlan,
} from '../../core/format.ts';
import type { BlockNode, Child } from '../../core/node.ts';
import { PresenceMap } from '../../core/presence-map.ts';
import type { RunList } from '../../core/run.ts';
import type { ZeroOptions } from '../../core/store.ts';
import { type BackingFacts, backingFacts } from './backing-facts.ts';
import { CowChecker } from './check.ts';
import type { CowDetection } from './detect.ts';
import { type CowHeader, patchBacking } from './header.ts';
import { describeCow } from './info.ts';
import { layoutOf } from './layouts.ts';
import { recordFor } from './record.ts';

export interface CowNodeInput {
  readonly context: OpenContext;
  readonly detection: CowDetection;
  readonly backing: BlockNode | undefined;
  readonly backingStatus: ReferenceStatus | undefined;
  /** Bits that count, and bytes of bitmap that hold them. */
  readonly bits: number;
  readonly bitmapLength: number;
  /** The caller answers for the backing file. */
  readonly ignoreMismatch: boolean;
}

export class CowNode implements FormatNode {
  readonly format = 'cow';
  readonly virtualSize: number;
  readonly unit: number;
  readonly zeroUnit: number;
  readonly recurse = 'none';
  readonly readOnly: boolean;
  readonly children: readonly Child[];
  readonly check: CheckFacet;
  readonly #context: OpenContext;
  readonly #detection: CowDetection;
  readonly #map: PresenceMap;
  #header: CowHeader;
  #facts: BackingFacts;
  #engine: EngineServices | undefined;

  constructor(input: CowNodeInput) {
    const { context, detection, backing, backingStatus, bits, bitmapLength, ignoreMismatch } = input;
    const { header, geometry } = detection;
    this.virtualSize = header.size;
    this.unit = header.sectorSize;
    this.zeroUnit = header.sectorSize;
    this.readOnly = context.readOnly;
    this.#context = context;
    this.#detection = detection;
    this.#header = header;
    this.#facts = backingFacts(header, backingStatus);
    const file: Child = { role: 'file', name: 'file', node: context.file };
    this.children = backing === undefined ? [file] : [file, { role: 'backing', name: 'backing', node: backing }];
    this.#map = new PresenceMap({
      file: context.file,
      data: context.file,
      child: 0,
      hasBacking: backing !== undefined,
      readOnly: context.readOnly,
      budget: context.cache,
      rules: context.rules,
      unsafe: context.unsafe,
      geometry: {
        unit: header.sectorSize,
        virtualSize: header.size,
        bitmapOffset: geometry.bitmapOffset,
        bitmapLength,
        bits,
        dataOffset: geometry.dataOffset,
        wordBytes: layoutOf(header.layout).wordBytes,
      },
      refuseTail: (offset) => this.#tailError(offset),
    });
    this.check = new CowChecker({
      file: context.file,
      name: context.name,
      readOnly: context.readOnly,
      ignoreMismatch,
      detection,
      map: this.#map,
      facts: () => this.#facts,
      backingName: () => this.#header.backingName,
      refreshBacking: () => this.changeBacking({ name: this.#header.backingName ?? '' }),
      exclusive: (body) => (this.#engine === undefined ? body() : this.#engine.exclusive(body)),
    });
  }

  attach(engine: EngineServices): void {
    this.#engine = engine;
  }

  map(offset: number, length: number, into: RunList): Pending {
    return this.#map.map(offset, length, into);
  }

  prepareWrite(offset: number, length: number): MaybePromise<WritePlan> {
    return this.#map.prepareWrite(offset, length);
  }

  commitWrite(plan: WritePlan): Pending {
    return this.#map.commitWrite(plan);
  }

  abortWrite(plan: WritePlan): Pending {
    return this.#map.abortWrite(plan);
  }

  mapZeroes(offset: number, length: number, options: ZeroOptions): Promise<'done'> {
    return this.#map.zero(offset, length, options);
  }

  unmap(offset: number, length: number, reveal: 'zero' | 'backing'): Promise<'done' | 'unsupported'> {
    return this.#map.unmap(offset, length, reveal);
  }

  /** Clears the bitmap and then gives the data's space back, where that is cheap. */
  async makeEmpty(): Promise<void> {
    await this.#map.clear();
    const { file } = this.#context;
    const { dataOffset } = this.#detection.geometry;
    if (file.size <= dataOffset) return;
    try {
      await file.writeZeroes(dataOffset, file.size - dataOffset, { unmap: true, fastOnly: true });
    } catch (error) {
      // Stale data behind clear bits is never read.
      if (!isBlockError(error) || error.code !== 'UNSUPPORTED') throw error;
    }
  }

  /** Rewrites name and time in the header; with the recorded name only the time, which is one write inside one sector.
   *  @throws {@link BlockError} OPTION, as for creation. */
  async changeBacking(backing: BackingRecord | undefined): Promise<void> {
    const { name, file } = this.#context;
    const layout = layoutOf(this.#header.layout);
    const same = backing?.name === this.#header.backingName;
    const status =
      backing === undefined
        ? undefined
        : await this.#context.referenceStatus({ role: 'backing', name: backing.name, readOnly: true });
    const record = recordFor(layout, name, backing, status, this.virtualSize);
    const patches = patchBacking(this.#header.layout, {
      ...(same ? {} : { name: record.name }),
      mtime: record.mtime,
    });
    for (const { offset, bytes } of patches) await file.write(offset, bytes);
    await file.flush();
    this.#header = { ...this.#header, mtime: record.mtime, ...(same ? {} : { backingName: record.name || undefined }) };
    this.#facts = backingFacts(this.#header, status);
  }

  flush(): Pending {
    return this.readOnly ? undefined : this.#map.flush();
  }

  close(): Promise<void> {
    return this.#map.close();
  }

  info(): FormatInfo {
    return describeCow(this.#detection, this.#header, this.#facts);
  }

  #tailError(offset: number): BlockError {
    const { layout, size } = this.#header;
    return new BlockError(
      'UNSUPPORTED',
      `cow "${this.#context.name}": layout ${layout} has no bit for the sector at ${hex(offset)} of ${hex(size)} bytes, so it cannot be written; convert the image to another layout or format`,
      { reason: 'cow.tail', details: { layout, offset, size } },
    );
  }
}
