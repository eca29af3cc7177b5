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

/** Rows whose test, or code, is yet to come. */
const OPEN = new Set<string>([
  'Q-001',
  'Q-005',
  'Q-011',
  'Q-014',
  'Q-015',
  'Q-017',
  'Q-018',
  'Q-022',
  'Q-024',
  'Q-031',
  'Q-032',
  'Q-033',
  'Q-036',
  'Q-037',
  'Q-039',
  'Q-040',
  'Q-050',
  'Q-052',
  'Q-057',
  'Q-066',
  'Q-082',
  'Q-083',
  'Q-097',
  'Q-098',
  'Q-102',
  'Q-103',
  'Q-104',
  'Q-105',
  'Q-106',
  'Q-110',
  'Q-112',
  'Q-113',
  'Q-114',
  'Q-124',
  'Q-125',
  'Q-143',
  'Q-145',
  'Q-150',
  'Q-151',
  'Q-152',
  'Q-153',
  'Q-154',
  'Q-155',
  'Q-163',
  'Q-164',
  'Q-165',
  'Q-166',
  'Q-170',
  'Q-174',
  'Q-175',
  'Q-176',
  'Q-180',
  'Q-181',
  'Q-192',
  'Q-200',
  'Q-201',
  'Q-202',
  'Q-203',
  'Q-204',
  'Q-205',
  'Q-206',
  'Q-207',
  'Q-208',
  'Q-209',
  'Q-210',
  'Q-211',
  'Q-212',
  'Q-213',
  'Q-240',
  'Q-242',
  'Q-247',
  'M-02',
  'M-04',
  'M-07',
  'M-08',
  'M-09',
  'M-11',
  'M-12',
  'M-13',
  'M-14',
  'M-15',
  'M-16',
  'M-17',
  'M-18',
  'M-19',
  'M-20',
  'M-28',
  'M-29',
  'M-30',
]);

describe('the rows of qcow2', () => {
  const ids = generator.readRows(ROOT).flatMap(({ rows }) => rows.map(({ id }) => id));
  const tests = generator.testsOfRows(ROOT);

  it('have a test each, with the id in its name', () => {
    expect(ids.length).toBeGreaterThan(200);
    expect(ids.filter((id) => !tests.has(id) && !OPEN.has(id))).toEqual([]);
  });

  it('are all that tests are named after', () => {
    expect([...tests.keys()].filter((id) => !ids.includes(id))).toEqual([]);
  });

  it('are on their page with the tests that there are', () => {
    const page = readFileSync(join(ROOT, 'docs', 'formats', 'qcow2-rows.md'), 'utf8');
    expect(page === generator.rowsPage(ROOT), 'stale; run: npm run docs').toBe(true);
  });
});
