/** Directories in which commands are run: the files of an image, fresh for every run, and what fills the placeholders.
 *  Invariants: a run sees nothing of the one before; files have the times that cow images record; holes stay holes. */
import { closeSync, ftruncateSync, futimesSync, mkdirSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { isZero } from '../../bytes/zeros.ts';
import { FILE_TIME } from '../../tools/fuzz/memory-files.ts';
import { IMAGE_NAME, SECRET } from '../../tools/fuzz/specimen.ts';
import { type Filling, optionValue } from './template.ts';

const PAGE = 64 * 1024;
const KEY_NAME = 'key';
const OUTPUT_NAME = 'output';

/** What a run needs to know of an image. */
export interface Subject {
  readonly format: string;
  /** Of the disk before it was damaged, bytes. */
  readonly size: number;
  readonly place: { readonly offset: number; readonly length: number };
  /** Open options by their names on the command line. */
  readonly open: Readonly<Record<string, string>>;
  /** The image, damaged, and what it names. */
  readonly files: ReadonlyMap<string, Uint8Array>;
}

/** Writes the files of an image into a directory, which is made. */
export function layOut(directory: string, files: Subject['files']): void {
  mkdirSync(directory, { recursive: true });
  for (const [name, bytes] of files) writeSparse(join(directory, name), bytes);
  writeFileSync(join(directory, KEY_NAME), SECRET);
}

export function clear(directory: string): void {
  rmSync(directory, { recursive: true, force: true });
}

function writeSparse(path: string, bytes: Uint8Array): void {
  const fd = openSync(path, 'w');
  try {
    for (let at = 0; at < bytes.length; at += PAGE) {
      const page = bytes.subarray(at, Math.min(at + PAGE, bytes.length));
      if (!isZero(page)) writeSync(fd, page, 0, page.length, at);
    }
    ftruncateSync(fd, bytes.length);
    futimesSync(fd, FILE_TIME, FILE_TIME);
  } finally {
    closeSync(fd);
  }
}

/** What stands for the placeholders. @param cowdisk the words that start this program */
export function fillingOf(directory: string, subject: Subject, cowdisk: readonly string[]): Filling {
  const { format, size, place, open } = subject;
  const image = join(directory, IMAGE_NAME);
  const key = join(directory, KEY_NAME);
  const options = Object.entries(open).map(([name, value]) => `${name}=${optionValue(value)}`);
  return {
    image,
    format,
    key,
    size: String(size),
    offset: String(place.offset),
    length: String(place.length),
    output: join(directory, OUTPUT_NAME),
    object: `secret,id=secret,file=${optionValue(key)}`,
    open: [`driver=${format}`, `file.filename=${optionValue(image)}`, ...options].join(','),
    cowdisk,
  };
}
