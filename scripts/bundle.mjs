// Joins the program's modules into few files (dist/program), because a module costs most of a millisecond at every start.
// The library itself is not bundled: what tsc wrote to dist/ is what users import and debug.
import { rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const at = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url));

rmSync(at('dist/program'), { recursive: true, force: true });
await build({
  // The worker is started by its file name, beside the chunk that starts it.
  entryPoints: { main: at('dist/cli/main.js'), 'codec-worker': at('dist/platform/node/codec-worker.js') },
  outdir: at('dist/program'),
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node20.19',
  alias: { '#platform': at('dist/platform/node/index.js') },
  // Loaded from node_modules, and only when they are needed.
  external: ['koffi', '@bokuweb/zstd-wasm'],
  legalComments: 'none',
  logLevel: 'warning',
});
