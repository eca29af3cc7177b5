/** The house keeps its rules: imports point down, rooms of one floor do not know each other, and clocks, chance and the process stay where they
 *  belong. Each rule is also shown to fail on a planted offender, so that a rule that has stopped working is noticed. */
import { readdirSync, readFileSync } from 'node:fs';
import { join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { checkArchitecture, type Rule, roomOf, type Violation } from './support/architecture.ts';

const SRC = fileURLToPath(new URL('../src', import.meta.url));

function readSources(): Map<string, string> {
  const sources = new Map<string, string>();
  for (const entry of readdirSync(SRC, { withFileTypes: true, recursive: true })) {
    if (!entry.isFile() || !entry.name.endsWith('.ts')) continue;
    const path = join(entry.parentPath, entry.name);
    sources.set(
      path
        .slice(SRC.length + 1)
        .split(sep)
        .join('/'),
      readFileSync(path, 'utf8'),
    );
  }
  return sources;
}

/** Names that drivers give themselves. */
function formatNames(sources: ReadonlyMap<string, string>): Set<string> {
  const names = new Set<string>();
  for (const [file, text] of sources) {
    if (!/^formats\/[^/]+\/driver\.ts$/.test(file)) continue;
    const name = /defineFormat\(\{\s*name: '([^']+)'/.exec(text)?.[1];
    expect(name, `the name of the format in ${file}`).toBeDefined();
    names.add(name as string);
  }
  return names;
}

const text = (violation: Violation): string =>
  `${violation.file}:${violation.line} ${violation.rule}: ${violation.what}`;

describe('the sources', () => {
  const sources = readSources();

  it('are all there to be checked', () => {
    expect(sources.size).toBeGreaterThan(100);
    for (const room of [
      'base',
      'bytes',
      'core',
      'codec',
      'storage',
      'formats/raw',
      'formats/qcow2',
      'image',
      'tools',
      'cli',
    ]) {
      expect([...sources.keys()].some((file) => roomOf(file) === room)).toBe(true);
    }
  });

  it('keep every rule of the house', () => {
    expect(checkArchitecture(sources, formatNames(sources)).map(text)).toEqual([]);
  });

  it('say the names of their formats once, in the drivers', () => {
    expect([...formatNames(sources)]).toEqual(expect.arrayContaining(['qcow2', 'raw']));
  });
});

const HEADER = '/** What it owns. */\n';

/** Rules that one file of that path and text breaks. */
function broken(file: string, body: string): Rule[] {
  const sources = new Map([[file, HEADER + body]]);
  return checkArchitecture(sources, new Set(['raw', 'qcow2'])).map((violation) => violation.rule);
}

const BAD: readonly (readonly [rule: Rule, why: string, file: string, body: string])[] = [
  [
    'downward',
    'a core file that imports the front door',
    'core/run.ts',
    `import { openImage } from '../image/open.ts';`,
  ],
  ['downward', 'a type import upwards', 'base/job.ts', `import type { ByteStore } from '../core/store.ts';`],
  ['downward', 'an export from above', 'core/run.ts', `export { raw } from '../formats/raw/driver.ts';`],
  ['downward', 'a dynamic import upwards', 'image/open.ts', `export const later = () => import('../cli/main.ts');`],
  ['downward', 'a type in passing', 'core/run.ts', `export type T = import('../tools/map.ts').MapOptions;`],
  ['downward', 'the cellar that looks up', 'platform/node/zstd.ts', `import { openImage } from '../../image/open.ts';`],
  [
    'downward',
    'the cellar that looks at floor 1',
    'platform/node/zstd.ts',
    `import { RunList } from '../../core/run.ts';`,
  ],
  ['downward', 'a file outside the sources', 'core/run.ts', `import { x } from '../../test/support/scratch.ts';`],
  ['same-floor', 'a format that enters another room', 'formats/qed/map.ts', `import { x } from '../qcow2/entries.ts';`],
  [
    'same-floor',
    'a format that opens files itself',
    'formats/raw/driver.ts',
    `import { x } from '../../storage/file.ts';`,
  ],
  ['same-floor', 'storage that knows a format', 'storage/slice.ts', `import { raw } from '../formats/raw/driver.ts';`],
  ['same-floor', 'a filter that knows storage', 'filters/throttle.ts', `import { x } from '../storage/memory.ts';`],
  ['same-floor', 'a codec that knows the engine', 'codec/create.ts', `import { RunList } from '../core/run.ts';`],
  ['same-floor', 'a server that uses a tool', 'server/nbd-server.ts', `import { mapImage } from '../tools/map.ts';`],
  [
    'tools-formats',
    'a tool that knows a format',
    'tools/convert.ts',
    `import { qcow2 } from '../formats/qcow2/driver.ts';`,
  ],
  [
    'tools-formats',
    'a tool that knows all formats',
    'tools/info.ts',
    `import { ALL_FORMATS } from '../formats/all.ts';`,
  ],
  ['format-name', 'a tool that asks for a name', 'tools/map.ts', `export const f = (n: string) => n === 'qcow2';`],
  [
    'format-name',
    'a switch over names',
    'tools/map.ts',
    `export function f(n: string) { switch (n) { case 'raw': return 1; } return 0; }`,
  ],
  ['faces', 'a room that imports a face', 'tools/map.ts', `import { openImage } from '../node.ts';`],
  [
    'faces',
    'a room that imports the test tools',
    'core/run.ts',
    `import { seededRandom } from '../testing/random.ts';`,
  ],
  ['faces', 'the program that imports the test tools', 'cli/main.ts', `import { x } from '../testing/random.ts';`],
  [
    'isomorphic',
    'the isomorphic face that imports a Node store',
    'index.ts',
    `export { fileProtocol } from './storage/file.ts';`,
  ],
  ['isomorphic', 'the browser face that imports the Node face', 'browser.ts', `export * from './node.ts';`],
  [
    'isomorphic',
    'an isomorphic store that uses a Node one',
    'storage/memory.ts',
    `import { FileStore } from './file-store.ts';`,
  ],
  ['node', 'a Node module in the engine', 'core/run.ts', `import { readSync } from 'node:fs';`],
  ['node', 'a Node module in an isomorphic store', 'storage/memory.ts', `import { readSync } from 'node:fs';`],
  ['node', 'a Node module in a tool', 'tools/map.ts', `export const later = () => import('node:fs');`],
  ['platform', 'a format that asks the platform', 'formats/qcow2/node.ts', `import { encodeUnit } from '#platform';`],
  ['platform', 'a way past #platform', 'codec/create.ts', `import { encodeUnit } from '../platform/node/codecs.ts';`],
  ['package', 'a package that nobody decided on', 'image/open.ts', `import chalk from 'chalk';`],
  ['package', 'native calls outside their door', 'storage/file-store.ts', `import koffi from 'koffi';`],
  ['package', 'an import of something computed', 'cli/main.ts', `export const load = (name: string) => import(name);`],
  ['ambient', 'a print in the library', 'image/open.ts', `export const f = () => console.log('x');`],
  ['ambient', 'the environment in a tool', 'tools/map.ts', `export const f = () => process.env;`],
  ['ambient', 'a clock in a format', 'formats/qcow2/create.ts', `export const f = () => Date.now();`],
  ['ambient', 'today in a format', 'formats/qcow2/create.ts', `export const f = () => new Date();`],
  ['ambient', 'chance in the engine', 'core/run.ts', `export const f = () => Math.random();`],
  ['ambient', 'a timer in a store', 'storage/memory.ts', `export const f = () => setTimeout(() => {}, 1);`],
  [
    'ambient',
    'a timer by its full name',
    'storage/memory.ts',
    `export const f = () => globalThis.setImmediate(() => {});`,
  ],
  [
    'ambient',
    'a repeated timer where one timer is allowed',
    'base/job.ts',
    `export const f = () => setInterval(() => {}, 1);`,
  ],
  [
    'bit-operators',
    'a shift of an offset',
    'formats/qcow2/cluster-map.ts',
    `export const f = (at: number) => at >> 16;`,
  ],
  ['bit-operators', 'a mask on a length', 'core/run.ts', `export const f = (n: number) => n & 511;`],
  ['side-effect', 'work at load', 'formats/raw/driver.ts', `register();\ndeclare function register(): void;`],
  ['side-effect', 'an import for its effect', 'index.ts', `import './formats/raw/driver.ts';`],
  ['any', 'the type any', 'core/run.ts', `export const f = (x: any): unknown => x;`],
  ['suppression', 'a silenced compiler', 'core/run.ts', `// @ts-ignore\nexport const x = 1;`],
  ['extension', 'an import without extension', 'core/run.ts', `import { assert } from '../base/errors';`],
  ['room', 'a room that is in no table', 'misc/utils.ts', `export const x = 1;`],
];

describe('the checker', () => {
  for (const [rule, why, file, body] of BAD) {
    it(`finds ${why} (${rule})`, () => {
      expect(broken(file, body)).toEqual([rule]);
    });
  }

  it('finds a file without header comment', () => {
    const found = checkArchitecture(new Map([['core/run.ts', 'export const x = 1;\n']]), new Set());
    expect(found.map((violation) => violation.rule)).toEqual(['header']);
  });

  it('names file and line', () => {
    const sources = new Map([['core/run.ts', `${HEADER}\nimport { x } from '../cli/main.ts';\n`]]);
    expect(checkArchitecture(sources, new Set()).map(text)).toEqual([
      "core/run.ts:3 downward: floor 1 imports '../cli/main.ts' from floor 5".replace("'../cli", "'cli"),
    ]);
  });

  const GOOD: readonly (readonly [why: string, file: string, body: string])[] = [
    ['a way down', 'tools/map.ts', `import { Image } from '../image/image.ts';`],
    ['the own room', 'formats/qcow2/node.ts', `import { x } from './entries.ts';`],
    ['the list of formats', 'formats/all.ts', `import { raw } from './raw/driver.ts';`],
    ['the two halves of floor 0', 'bytes/struct.ts', `import { hex } from '../base/errors.ts';`],
    ['a face that imports everything', 'node.ts', `import { fileProtocol } from './storage/file.ts';`],
    ['the program that imports a face', 'cli/main.ts', `import { openImage } from '../node.ts';`],
    ['a Node store that imports Node', 'storage/file-store.ts', `import { readSync } from 'node:fs';`],
    [
      'a Node store that imports native calls',
      'storage/file-store.ts',
      `import { n } from '../platform/node/native.ts';`,
    ],
    ['a codec that asks the platform', 'codec/create.ts', `import { encodeUnit } from '#platform';`],
    ['the waiting of jobs', 'base/job.ts', `export const f = () => setTimeout(() => {}, performance.now());`],
    ['a property that is called like a global', 'tools/map.ts', `export const f = (x: { process: 1 }) => x.process;`],
    ['a date that is given', 'tools/info.ts', `export const f = (seconds: number) => new Date(seconds * 1000);`],
    ['a format name as a default', 'tools/measure.ts', `export const f = (n?: string) => n ?? 'raw';`],
    ['masks of the table of entries', 'formats/qcow2/entries.ts', `export const f = (w: number) => w & 511;`],
    ['flags of 64 bits', 'formats/qcow2/header.ts', `export const f = (w: bigint) => w & ~1n;`],
  ];
  for (const [why, file, body] of GOOD) {
    it(`lets ${why} pass`, () => {
      expect(broken(file, body)).toEqual([]);
    });
  }
});
