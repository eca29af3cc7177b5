/** What a cow header records of a backing file: its name and time of change. Spec: "mtime and size checks, backing name".
 *  UML's layouts hold an absolute name, and a disk of the base's very size; QEMU's hold the name as it was given. */
import { BlockError } from '../../base/errors.ts';
import type { BackingRecord, ReferenceStatus } from '../../core/format.ts';
import { headerTime } from './backing-facts.ts';
import type { CowLayout } from './layouts.ts';

export interface CowRecord {
  /** Empty: no backing file. */
  readonly name: string;
  readonly mtime: number;
}

/** @param status `undefined`: the file is not there or may not be looked at.
 *  @throws {@link BlockError} OPTION, reasons `cow.backing-needed`, `cow.backing-format`, `cow.backing-size`, `cow.backing-relative`. */
export function recordFor(
  layout: CowLayout,
  image: string,
  backing: BackingRecord | undefined,
  status: ReferenceStatus | undefined,
  virtualSize: number,
): CowRecord {
  const fail = (reason: string, text: string, details: Readonly<Record<string, unknown>> = {}): BlockError =>
    new BlockError('OPTION', `cow "${image}": ${text}`, { reason, details: { layout: layout.id, ...details } });
  if (layout.qemu) return { name: backing?.name ?? '', mtime: headerTime(status?.modifiedSeconds ?? 0) };
  if (backing === undefined) {
    throw fail('cow.backing-needed', `layout ${layout.id} needs a backing file; only QEMU's layouts do without`);
  }
  const { name, format = 'raw' } = backing;
  if (format !== 'raw') {
    throw fail(
      'cow.backing-format',
      `layout ${layout.id} records no format and is read over a raw backing file, not ${format}`,
      { format },
    );
  }
  if (status?.size !== undefined && status.size !== virtualSize) {
    throw fail(
      'cow.backing-size',
      `with layout ${layout.id} the disk has the size of its backing file, ${status.size} bytes, not ${virtualSize}`,
      { size: virtualSize, backingSize: status.size },
    );
  }
  const absolute = status?.absolute ?? name;
  if (status === undefined && !/^([/\\]|[a-zA-Z]:)/.test(name)) {
    throw fail(
      'cow.backing-relative',
      `layout ${layout.id} records an absolute name, and backing file "${name}" is not there to find out`,
      { name },
    );
  }
  return { name: absolute, mtime: headerTime(status?.modifiedSeconds ?? 0) };
}
