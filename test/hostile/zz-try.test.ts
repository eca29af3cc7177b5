import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { it } from 'vitest';
import { compileInto } from './compile.ts';
import { runCases } from './runner.ts';

it('tries', { timeout: 3_000_000 }, async () => {
  const code = mkdtempSync(join(tmpdir(), 'cowdisk-hostile-'));
  const t0 = Date.now();
  compileInto(code);
  console.log('compiled', Date.now() - t0);
  const result = await runCases({ code, directory: fileURLToPath(new URL('../fixtures/hostile/bases', import.meta.url)), seed: Number(process.env.SEED ?? 1), cases: Number(process.env.CASES ?? 200), children: 2, limitMs: 1000 });
  rmSync(code, { recursive: true });
  console.log('ms', Date.now() - t0, 'cases', result.cases, 'slowest', result.slowest, 'peak', result.peakBytes / 1048576, 'failures', result.failures.length);
  const groups = new Map();
  for (const f of result.failures) { const key = f.what.split('\n').slice(0, 3).join('|').replace(/\d+/g, 'N').slice(0,220); const g = groups.get(key) ?? []; g.push(f); groups.set(key, g); }
  for (const [key, g] of [...groups].sort((a, b) => b[1].length - a[1].length)) console.log(g.length, key, g.slice(0, 6).map((f) => `${f.index}:${f.recipe?.base}/${f.recipe?.kind}`).join(' '));
  writeFileSync('/tmp/hx/failures.json', JSON.stringify(result.failures, null, 1));
  writeFileSync('/tmp/hx/endings.txt', [...result.endings].sort((a, b) => b[1] - a[1]).map(([k, n]) => `${n} ${k}`).join('\n'));
  writeFileSync('/tmp/hx/hits.txt', [...result.hits].sort((a, b) => b[1] - a[1]).map(([k, n]) => `${n} ${k}`).join('\n'));
});
