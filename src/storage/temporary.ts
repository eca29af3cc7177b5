/** Places for temporary files (Node). Owns a directory of its own for each, which nobody else can look into, and its end.
 *  Invariant: when the program ends in an orderly way, by `process.exit` included, no file made here is left. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fromSystemError } from '../base/errors.ts';

/** Directories that are there now. */
const DIRECTORIES = new Set<string>();

/** Makes a place for one file.
 *  @param parent the directory to make it in; the system's for temporary files when not given
 *  @throws {@link BlockError} NOT_FOUND, ACCESS and others of the system. */
export async function temporaryFile(parent?: string): Promise<{ readonly name: string; remove(): Promise<void> }> {
  const where = parent === undefined ? tmpdir() : resolve(parent);
  let directory: string;
  try {
    directory = mkdtempSync(join(where, 'cowdisk-'));
  } catch (error) {
    throw fromSystemError(error, `could not make a temporary file in "${where}"`, { name: where });
  }
  if (DIRECTORIES.size === 0) process.on('exit', removeAll);
  DIRECTORIES.add(directory);
  return {
    name: join(directory, 'spool'),
    async remove() {
      rmSync(directory, { recursive: true, force: true });
      DIRECTORIES.delete(directory);
      if (DIRECTORIES.size === 0) process.off('exit', removeAll);
    },
  };
}

/** The last moment: nothing that waits can be done any more. */
function removeAll(): void {
  for (const directory of DIRECTORIES) {
    try {
      rmSync(directory, { recursive: true, force: true });
    } catch {
      // There is nobody left to tell.
    }
  }
}
