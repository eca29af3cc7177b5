/** `npm run docs`: writes docs/reference/ anew from the sources. `--check` only compares, and fails when a page is not what it would be. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build, ensureDependencies, isBuilt, ROOT, requireNode } from './lib.mjs';

requireNode();
ensureDependencies();
if (!isBuilt() && (await build()) !== 0) process.exit(1);

const check = process.argv.includes('--check');
const directory = join(ROOT, 'docs', 'reference');
mkdirSync(directory, { recursive: true });
let stale = 0;
for (const [name, text] of await pages()) {
  const file = join(directory, name);
  let present;
  try {
    present = readFileSync(file, 'utf8');
  } catch {
    present = undefined;
  }
  if (present === text) continue;
  stale++;
  console.log(`${check ? 'not current' : 'written'}: docs/reference/${name}`);
  if (!check) writeFileSync(file, text);
}
if (stale === 0) console.log('docs/reference/ is current');
process.exit(check && stale > 0 ? 1 : 0);

async function pages() {
  const { loadProgram } = await import('./docs/program.mjs');
  const { errorsPage } = await import('./docs/errors.mjs');
  const { apiPage } = await import('./docs/api.mjs');
  const { optionsPage } = await import('./docs/options.mjs');
  const load = (path) => import(pathToFileURL(join(ROOT, 'dist', path)).href);
  const { ALL_FORMATS: formats } = await load('node.js');
  const { cliName } = await load('base/options.js');
  const { commandLineReference } = await load('cli/reference.js');
  const program = loadProgram(ROOT.replace(/[\\/]$/, ''));
  return [
    ['api.md', apiPage(program, ROOT.replace(/[\\/]$/, ''))],
    ['cli.md', await commandLineReference()],
    ['errors.md', errorsPage(program).text],
    ['options.md', optionsPage({ formats, cliName })],
  ];
}
