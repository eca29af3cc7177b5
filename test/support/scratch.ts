/** A directory for one test file, gone afterwards. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

/** Creates it now and removes it after the last test of the file.
 *  @returns the path of a name inside it */
export function scratch(): (name: string) => string {
  const directory = mkdtempSync(join(tmpdir(), 'cowdisk-test-'));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  return (name) => join(directory, name);
}
