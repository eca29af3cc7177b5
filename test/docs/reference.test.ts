/** The generated pages are what the sources say now, and the error page knows every reason that the program has a sentence for. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import { cliName } from '../../src/base/options.ts';
import { commandLineReference } from '../../src/cli/reference.ts';
import { ALL_FORMATS, auditRules } from '../../src/node.ts';
import { ROOT } from './run.ts';

const STALE = 'stale; run: npm run docs';

function page(name: string): string {
  return readFileSync(join(ROOT, 'docs', 'reference', name), 'utf8');
}

/** A generator is plain JavaScript. */
async function generator<T>(name: string): Promise<T> {
  return (await import(pathToFileURL(join(ROOT, 'scripts', 'docs', name)).href)) as T;
}

describe('docs/reference', () => {
  it('has the command line as the tables have it', async () => {
    expect(page('cli.md') === (await commandLineReference()), STALE).toBe(true);
  });

  it('has the options as the schemas have them', async () => {
    const { optionsPage } = await generator<{ optionsPage(library: object): string }>('options.mjs');
    expect(page('options.md') === optionsPage({ formats: ALL_FORMATS, cliName }), STALE).toBe(true);
  });

  it('has the findings of audits as the tables of rules have them', async () => {
    const { findingsPage } = await generator<{ findingsPage(groups: object): string }>('findings.mjs');
    expect(page('findings.md') === findingsPage(auditRules(ALL_FORMATS)), STALE).toBe(true);
  });

  it('has the errors and the library as the sources have them', async () => {
    const { loadProgram } = await generator<{ loadProgram(root: string): unknown }>('program.mjs');
    const { errorsPage } = await generator<{ errorsPage(program: unknown): { text: string; reasons: Set<string> } }>(
      'errors.mjs',
    );
    const { apiPage } = await generator<{ apiPage(program: unknown, root: string): string }>('api.mjs');
    const program = loadProgram(ROOT);
    const errors = errorsPage(program);
    expect(page('errors.md') === errors.text, STALE).toBe(true);
    expect(page('api.md') === apiPage(program, ROOT), STALE).toBe(true);
    expect(errors.reasons.size).toBeGreaterThan(150);
    expect([...sentences()].filter((reason) => !errors.reasons.has(reason))).toEqual([]);
  });
});

/** Reasons that have a sentence of QEMU's. */
function sentences(): Set<string> {
  const reasons = new Set<string>();
  for (const file of ['qemu-text.ts', 'qemu-text-qcow2.ts']) {
    const text = readFileSync(join(ROOT, 'src', 'cli', 'render', file), 'utf8');
    for (const [, reason] of text.matchAll(/^ {2}'([a-z0-9]+\.[a-z0-9.-]+)':/gm)) reasons.add(reason as string);
  }
  expect(reasons.size).toBeGreaterThan(50);
  return reasons;
}
