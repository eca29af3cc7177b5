// Joins the program's modules into one file (dist/program), and keeps V8's compiled code beside it: a module costs most of a millisecond
// at every start, and so does compiling. The library itself is not bundled: what tsc wrote to dist/ is what users import and debug.
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const at = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url));

const common = {
  outdir: at('dist/program'),
  bundle: true,
  platform: 'node',
  target: 'node20.19',
  alias: { '#platform': at('dist/platform/node/index.js') },
  // Loaded from node_modules, and only when they are needed.
  external: ['koffi', '@bokuweb/zstd-wasm'],
  legalComments: 'none',
  // Less to read and to hash at every start; names stay, because they stand in stack traces.
  minifyWhitespace: true,
  minifySyntax: true,
  logLevel: 'warning',
};

rmSync(at('dist/program'), { recursive: true, force: true });
await build({
  ...common,
  entryPoints: { main: at('dist/cli/main.js') },
  outExtension: { '.js': '.cjs' },
  format: 'cjs',
  // Code that V8 is handed compiled has no way to import: what is loaded later is required.
  supported: { 'dynamic-import': false },
  define: { 'import.meta.url': '__moduleUrl' },
  banner: { js: "const __moduleUrl = require('node:url').pathToFileURL(__filename).href;" },
});
// Started by its file name, beside the file that starts it.
await build({ ...common, entryPoints: { 'codec-worker': at('dist/platform/node/codec-worker.js') }, format: 'esm' });

// One real conversion, so that the functions it takes are compiled.
const warm = spawnSync(
  process.execPath,
  [
    at('scripts/keep-compiled.cjs'),
    'convert',
    '-O',
    'qcow2',
    at('samples/overlay.qcow2'),
    at('dist/program/warm.qcow2'),
  ],
  { encoding: 'utf8' },
);
rmSync(at('dist/program/warm.qcow2'), { force: true });
if (warm.status !== 0) throw new Error(`the bundled program does not work: ${warm.stderr}`);
