/** What a server offers: images by name, and what each can do. Owns the check of the list. */
import { BlockError } from '../base/errors.ts';
import type { BitmapInfo } from '../core/format.ts';
import { type BlockNode, formatBelow } from '../core/node.ts';
import type { Image } from '../image/image.ts';
import { EXPORT_FLAG, LIMITS } from '../nbd/constants.ts';

export interface ServedExport {
  /** What clients ask for; 4096 bytes of UTF-8 at most. Clients that ask for the empty name get the first export. */
  readonly name: string;
  /** The image, which stays the caller's: a server neither opens nor closes it. */
  readonly image: Image;
  /** For people. */
  readonly description?: string | undefined;
  /** Refuse writes, even where the image could be written. */
  readonly readOnly?: boolean | undefined;
  /** Tell clients of the image's dirty bitmaps. Default true. */
  readonly bitmaps?: boolean | undefined;
}

const encoder = new TextEncoder();

/** An export, as sessions use it. */
export class Export {
  readonly name: string;
  readonly description: string | undefined;
  readonly image: Image;
  readonly node: BlockNode;
  readonly readOnly: boolean;
  readonly #bitmaps: boolean;

  constructor({ name, image, description, readOnly, bitmaps }: ServedExport) {
    for (const text of [name, description ?? '']) {
      const { length } = encoder.encode(text);
      if (length <= LIMITS.text) continue;
      throw new BlockError(
        'INVALID_ARGUMENT',
        `nbd: a name or description has ${length} bytes, at most ${LIMITS.text} are possible`,
        { reason: 'nbd.export-text', details: { length } },
      );
    }
    this.name = name;
    this.description = description;
    this.image = image;
    this.node = image.node;
    this.readOnly = readOnly === true || !image.node.supports.write;
    this.#bitmaps = bitmaps !== false;
  }

  /** Bytes. */
  get size(): number {
    return this.node.size;
  }

  /** Bytes: offsets and lengths of requests are multiples of it. */
  get minimumBlock(): number {
    return this.node.limits.requestAlign;
  }

  /** @param structured structured replies were agreed on */
  flags(structured: boolean, multiConn: boolean): number {
    const { hasFlags, readOnly, flush, fua, trim, writeZeroes, fastZero, df, cache } = EXPORT_FLAG;
    return (
      hasFlags |
      flush |
      fua |
      cache |
      (structured ? df : 0) |
      // Every connection works on the one image, so that a flush on one covers what another has written.
      (multiConn ? EXPORT_FLAG.multiConn : 0) |
      (this.readOnly ? readOnly : trim | writeZeroes | fastZero)
    );
  }

  /** The dirty bitmaps that clients may ask for. */
  async bitmaps(): Promise<readonly BitmapInfo[]> {
    if (!this.#bitmaps) return [];
    const all = (await formatBelow(this.node)?.bitmaps?.list()) ?? [];
    return all.filter((bitmap) => !bitmap.inconsistent);
  }

  /** Bytes reach the image. A guessed raw image is not to become another format. */
  write(offset: number, bytes: Uint8Array, fua: boolean): Promise<void> | undefined {
    const options = fua ? { fua } : undefined;
    return this.image.probedRaw ? this.image.write(offset, bytes, options) : this.node.write(offset, bytes, options);
  }
}

/** The exports of a server.
 *  @throws {@link BlockError} INVALID_ARGUMENT, reasons `nbd.export-text`, `nbd.export-twice`, `nbd.no-export`. */
export function exportsOf(served: readonly ServedExport[]): readonly Export[] {
  const names = new Set<string>();
  for (const { name } of served) {
    if (names.has(name)) {
      throw new BlockError('INVALID_ARGUMENT', `nbd: two exports have the name "${name}"`, {
        reason: 'nbd.export-twice',
        details: { name },
      });
    }
    names.add(name);
  }
  if (served.length === 0) {
    throw new BlockError('INVALID_ARGUMENT', 'nbd: a server without exports', { reason: 'nbd.no-export' });
  }
  return served.map((one) => new Export(one));
}

export function findExport(exports: readonly Export[], name: string): Export | undefined {
  return exports.find((one) => one.name === name) ?? (name === '' ? exports[0] : undefined);
}
