/** `npm run docs`: writes docs/reference/ and the table of rows anew from the sources. `--check` only compares, and fails when a page is not what it would be. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build, ensureDependencies, isBuilt, ROOT, requireNode } from './lib.mjs';

requireNode();
ensureDependencies();
if (!isBuilt() && (await build()) !== 0) process.exit(1);

const check = process.argv.includes('--check');
mkdirSync(join(ROOT, 'docs', 'reference'), { recursive: true });
let stale = 0;
for (const [name, text] of await pages()) {
  const file = join(ROOT, 'docs', name);
  let present;
  try {
    present = readFileSync(file, 'utf8');
  } catch {
    present = undefined;
  }
  if (present === text) continue;
  stale++;
  console.log(`${check ? 'not current' : 'written'}: docs/${name}`);
  if (!check) writeFileSync(file, text);
}
if (stale === 0) console.log('the generated pages are current');
process.exit(check && stale > 0 ? 1 : 0);

async function pages() {
  const { loadProgram } = await import('./docs/program.mjs');
  const { errorsPage } = await import('./docs/errors.mjs');
  const { apiPage } = await import('./docs/api.mjs');
  const { optionsPage } = await import('./docs/options.mjs');
  const { findingsPage } = await import('./docs/findings.mjs');
  const { rowsPage } = await import('./docs/rows.mjs');
  const load = (path) => import(pathToFileURL(join(ROOT, 'dist', path)).href);
  const { ALL_FORMATS: formats } = await load('node.js');
  const { cliName } = await load('base/options.js');
  const { auditRules } = await load('tools/audit.js');
  const { commandLineReference } = await load('cli/reference.js');
  const root = ROOT.replace(/[\\/]$/, '');
  const program = loadProgram(root);
  return [
    ['reference/api.md', apiPage(program, root)],
    ['reference/cli.md', await commandLineReference()],
    ['reference/errors.md', errorsPage(program).text],
    ['reference/findings.md', findingsPage(auditRules(formats))],
    ['reference/options.md', optionsPage({ formats, cliName })],
    ['formats/qcow2-rows.md', rowsPage(root)],
  ];
}
