/** The pages hang together: every link leads somewhere, and nothing of the machine they were written on is in them. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ROOT } from './run.ts';

function pages(): string[] {
  const below = readdirSync(join(ROOT, 'docs'), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.md'))
    .map((entry) => join(entry.parentPath, entry.name));
  return ['README.md', 'CHANGELOG.md'].map((name) => join(ROOT, name)).concat(below);
}

/** As GitHub makes anchors of headings. */
function anchors(page: string): Set<string> {
  const text = readFileSync(page, 'utf8').replaceAll(/^```[\s\S]*?^```$/gm, '');
  return new Set(
    [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
      heading
        .toLowerCase()
        .replaceAll(/[^\p{Letter}\p{Number} _-]/gu, '')
        .replaceAll(' ', '-'),
    ),
  );
}

describe('the documentation', () => {
  it('has no link that leads nowhere', () => {
    const dead: string[] = [];
    for (const page of pages()) {
      const text = readFileSync(page, 'utf8').replaceAll(/^```[\s\S]*?^```$/gm, '');
      for (const [, target = ''] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
        if (/^https?:/.test(target)) continue;
        const [path = '', anchor] = target.split('#');
        const file = path === '' ? page : resolve(dirname(page), path);
        const found = existsSync(file) && (anchor === undefined || !file.endsWith('.md') || anchors(file).has(anchor));
        if (!found) dead.push(`${relative(ROOT, page)}: ${target}`);
      }
    }
    expect(dead).toEqual([]);
  });

  it('is reached from its index', () => {
    const index = readFileSync(join(ROOT, 'docs', 'README.md'), 'utf8');
    const unreached = pages()
      .map((page) => relative(join(ROOT, 'docs'), page))
      .filter((name) => !name.startsWith('..') && name !== 'README.md')
      .filter((name) => !index.includes(`(${name})`));
    expect(unreached).toEqual([]);
  });

  it('names no directory of the machine that it was written on', () => {
    for (const page of pages()) expect(readFileSync(page, 'utf8'), page).not.toMatch(/\/(work|home|root|Users)\//);
  });

  it('promises nothing for later that looks like text', () => {
    for (const page of pages()) expect(readFileSync(page, 'utf8'), page).not.toMatch(/\b(TODO|FIXME|TBD|XXX)\b/);
  });
});
