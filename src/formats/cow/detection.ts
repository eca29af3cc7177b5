/** What detection is given and what it answers, as data. Spec: "Detection". */
import type { ByteStore } from '../../core/store.ts';
import type { CowHeader } from './header.ts';
import type { Finding, HardTest } from './header-tests.ts';
import type { CowGeometry, CowLayout, CowLayoutId } from './layouts.ts';

export interface DetectInput {
  /** What messages call the image. */
  readonly name: string;
  /** The first 8 KiB, or the whole file where it is shorter. */
  readonly head: Uint8Array;
  /** Bytes. */
  readonly fileSize: number;
  readonly file: ByteStore;
  /** Looks at a backing file, asked only where more than one layout fits. `undefined`: not there, or not to be looked at. */
  backingStatus(
    name: string,
  ): Promise<{ readonly size: number; readonly modifiedSeconds?: number | undefined } | undefined>;
  readonly signal?: AbortSignal;
}

/** How one layout reads the file; plain data. The header's fields are missing where the file ends before them. */
export interface CowCandidate {
  readonly layout: CowLayoutId;
  readonly backingName?: string | undefined;
  readonly mtime?: number;
  /** Of the disk, bytes; `Infinity` above 2^53-1. */
  readonly size?: number;
  readonly sectorSize?: number;
  readonly alignment?: number | undefined;
  /** Every hard test. */
  readonly passed: boolean;
  /** The first one that it fails, and how. */
  readonly failedTest?: HardTest;
  readonly failure?: string;
  /** What makes it likelier than others; empty where there was no need to ask. */
  readonly speaksFor: readonly string[];
}

export interface CowDetection {
  readonly layout: CowLayoutId;
  /** Fit to read by; for QEMU's layouts the sector size is 512 and the size whole sectors, as QEMU takes them. */
  readonly header: CowHeader;
  readonly geometry: CowGeometry;
  /** For people: how the layout was found. */
  readonly why: string;
  /** All that were looked at. */
  readonly candidates: readonly CowCandidate[];
  /** What is doubtful; sentences without subject, lower case, no full stop. */
  readonly warnings: readonly string[];
}

/** A layout under which the file can be read. */
interface Readable {
  readonly layout: CowLayout;
  readonly header: CowHeader;
  readonly geometry: CowGeometry;
}

export function detection(
  { layout, header, geometry }: Readable,
  why: string,
  candidates: readonly CowCandidate[],
  warnings: readonly string[],
): CowDetection {
  return { layout: layout.id, header, geometry, why, candidates, warnings };
}

/** One layout and what became of it. */
export function describeCandidate(
  examined: { readonly layout: CowLayout; readonly header?: CowHeader; readonly finding?: Finding },
  speaksFor: readonly string[] = [],
): CowCandidate {
  const { layout, header, finding } = examined;
  return {
    layout: layout.id,
    ...(header === undefined
      ? {}
      : {
          backingName: header.backingName,
          mtime: header.mtime,
          size: header.size,
          sectorSize: header.sectorSize,
          alignment: header.alignment,
        }),
    passed: finding === undefined,
    ...(finding === undefined ? {} : { failedTest: finding.test, failure: finding.text }),
    speaksFor,
  };
}

export function overlayWarnings({ overlay }: CowLayout): string[] {
  if (overlay === undefined) return [];
  return [
    `UML has written a header of layout ${overlay.header} over a file of layout ${overlay.body}, maybe over the bits of its first 64 sectors too`,
  ];
}
