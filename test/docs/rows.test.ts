/** Every row of the qcow2 table has a test that is named after it, and the page says which. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import { ROOT } from './run.ts';

interface Rows {
  readRows(root: string): { title: string; rows: { id: string }[] }[];
  testsOfRows(root: string): Map<string, { file: string; name: string }[]>;
  rowsPage(root: string): string;
}

const generator = (await import(pathToFileURL(join(ROOT, 'scripts', 'docs', 'rows.mjs')).href)) as Rows;

describe('the rows of qcow2', () => {
  const ids = generator.readRows(ROOT).flatMap(({ rows }) => rows.map(({ id }) => id));
  const tests = generator.testsOfRows(ROOT);

  it('have a test each, with the id in its name', () => {
    expect(ids.length).toBeGreaterThan(200);
    expect(ids.filter((id) => !tests.has(id))).toEqual([]);
  });

  it('are all that tests are named after', () => {
    expect([...tests.keys()].filter((id) => !ids.includes(id))).toEqual([]);
  });

  it('are on their page with the tests that there are', () => {
    const page = readFileSync(join(ROOT, 'docs', 'formats', 'qcow2-rows.md'), 'utf8');
    expect(page === generator.rowsPage(ROOT), 'stale; run: npm run docs').toBe(true);
  });
});
