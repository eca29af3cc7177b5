/** docs/formats/qcow2-rows.md: the rows of test/rows/qcow2.txt, each with the tests that have its id in their name, found by parsing the tests.
 *  A test that is renamed without its id is a row without a test, which test/docs/rows.test.ts refuses. */
import { readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import ts from 'typescript';
import { cell } from './program.mjs';

const ROW = /^([QM]-\d+) (.+)$/;
const ID = /\b[QM]-\d{2,3}\b/g;

/** @returns sections of rows, in the order of the file.
 *  @throws on a line that is nothing known, and on an id that is there twice. */
export function readRows(root) {
  const sections = [];
  const seen = new Set();
  for (const line of readFileSync(join(root, 'test', 'rows', 'qcow2.txt'), 'utf8').split('\n')) {
    if (line === '' || line.startsWith('# ')) continue;
    const section = sections.at(-1);
    const row = ROW.exec(line);
    if (line.startsWith('## ')) sections.push({ title: line.slice(3), rows: [] });
    else if (row !== null && !seen.has(row[1])) {
      seen.add(row[1]);
      section.rows.push({ id: row[1], says: row[2], here: undefined });
    } else if (line.startsWith('here: ')) section.rows.at(-1).here = line.slice(6);
    else throw new Error(`test/rows/qcow2.txt: ${line}`);
  }
  return sections;
}

/** @returns id → the tests that have it in their name. */
export function testsOfRows(root) {
  const found = new Map();
  for (const file of testFiles(join(root, 'test'))) {
    const text = readFileSync(file, 'utf8');
    if (text.search(ID) < 0) continue;
    for (const name of testNames(file, text)) {
      for (const id of new Set(name.match(ID) ?? [])) {
        found.set(id, [...(found.get(id) ?? []), { file: relative(root, file).replaceAll('\\', '/'), name }]);
      }
    }
  }
  return found;
}

export function rowsPage(root) {
  const tests = testsOfRows(root);
  const lines = [
    '# qcow2, row by row',
    '',
    'Made from test/rows/qcow2.txt and the names of the tests by `npm run docs`; do not edit.',
    '',
    'What the format and its driver do, and the tests that show it: Q as the driver of QEMU does it, M what newer QEMU added. Each test has the',
    'ids of its rows in its name. *Here:* is where this library differs on purpose. [The format](qcow2.md)',
  ];
  for (const { title, rows } of readRows(root)) {
    lines.push('', `## ${title}`, '', '| row | what holds | shown by |', '|---|---|---|');
    for (const { id, says, here } of rows) {
      const what = here === undefined ? says : `${says} *Here:* ${here}.`;
      lines.push(`| ${id} | ${cell(what)} | ${shownBy(tests.get(id) ?? [])} |`);
    }
  }
  return `${lines.join('\n')}\n`;
}

function shownBy(tests) {
  if (tests.length === 0) return '*no test yet*';
  return tests.map(({ file, name }) => `[${cell(escaped(name))}](../../${file})`).join('; ');
}

/** Nothing of a test's name is Markdown. */
function escaped(name) {
  return name.replaceAll(/[[\]*_`<>\\]/g, (character) => `\\${character}`);
}

function testFiles(directory) {
  return readdirSync(directory, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.test.ts'))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

/** Names of `it` and `test` calls, `it.each(…)` and the like included, behind those of their groups. What a template fills in is `…`. */
function testNames(file, text) {
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest);
  const names = [];
  const visit = (node, group) => {
    let inside = group;
    if (ts.isCallExpression(node) && node.arguments.length > 0) {
      const called = rootOf(node.expression);
      const name = literal(node.arguments[0]);
      if (name !== undefined && (called === 'it' || called === 'test')) names.push(`${group}${name}`);
      else if (name !== undefined && called.startsWith('describe')) inside = `${group}${name}: `;
    }
    ts.forEachChild(node, (child) => visit(child, inside));
  };
  visit(source, '');
  return names;
}

/** `it` of `it.each(…)`. */
function rootOf(callee) {
  let at = callee;
  while (ts.isCallExpression(at) || ts.isPropertyAccessExpression(at)) at = at.expression;
  return ts.isIdentifier(at) ? at.text : '';
}

function literal(node) {
  if (ts.isStringLiteralLike(node)) return node.text;
  if (!ts.isTemplateExpression(node)) return undefined;
  return node.head.text + node.templateSpans.map((span) => `…${span.literal.text}`).join('');
}
