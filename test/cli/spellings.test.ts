/** The option names of newer QEMU mean what the letters of the older one mean. */
import { mkdirSync, readFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();

/** `@` stands for the directory of the side, `^` for the one that both share. */
const PAIRS: readonly (readonly [older: string, newer: string])[] = [
  ['create -q -f qcow2 -o cluster_size=4k @x 1M', 'create --quiet --format qcow2 --options cluster_size=4k @x 1M'],
  ['create -f qcow2 -b ^base -F qcow2 @x', 'create -f qcow2 -b ^base -B qcow2 @x'],
  [
    'create -f qcow2 -u -b gone -F raw @x 1M',
    'create --format=qcow2 --backing-unsafe --backing gone --backing-format raw @x 1M',
  ],
  ['info -f raw -U ^base', 'info --format raw --force-share ^base'],
  ['check -q -r all -T none ^base', 'check --quiet --repair all --cache none ^base'],
  ['map -f qcow2 -s 64k -l 64k ^base', 'map --format qcow2 --start-offset 64k --max-length 64k ^base'],
  ['compare -s -q -f qcow2 -F raw ^base ^base', 'compare --strict --quiet --a-format qcow2 --b-format raw ^base ^base'],
  ['compare -p -T writeback ^base ^base', 'compare --progress --cache writeback ^base ^base'],
  [
    'measure --size 1M -O qcow2 -o cluster_size=4k',
    'measure -s 1M --target-format qcow2 --target-format-options cluster_size=4k',
  ],
  ['measure --size 1M -O qcow2 -o cluster_size=4k', 'measure -s 1M -O qcow2 --options cluster_size=4k'],
  ['measure -f raw ^base', 'measure --source-format raw ^base'],
  ['measure --image-opts driver=raw,file.filename=^base', 'measure --source-image-opts driver=raw,file.filename=^base'],
  [
    'convert -q -f qcow2 -O qcow2 -o cluster_size=4k -c -S 64k -m 2 -W -r 100M -t none -T none ^base @x',
    'convert --quiet --source-format qcow2 --target-format qcow2 --target-format-options cluster_size=4k --compress --sparse-size 64k ' +
      '--parallel 2 --oob-writes --rate-limit 100M --target-cache none --source-cache none ^base @x',
  ],
  ['convert -O qcow2 -B ^base -F qcow2 ^base @x', 'convert -O qcow2 -b ^base -F qcow2 ^base @x'],
  ['convert -O qcow2 -B ^base -F qcow2 ^base @x', 'convert -O qcow2 --backing ^base --backing-format qcow2 ^base @x'],
  ['convert -n ^base gone', 'convert --no-create ^base gone'],
  ['convert -C -c ^base @x', 'convert --copy-range-offloading --compress ^base @x'],
  ['convert -l nope ^base @x', 'convert --snapshot nope ^base @x'],
];

async function cli(line: string, side: string): Promise<string> {
  const out = new MemorySink();
  const err = new MemorySink();
  const args = line.split(' ').map((word) => word.replaceAll('@', `${side}/`).replaceAll('^', path('')));
  const status = await run({ calledAs: 'qemu-img', args, out, err, env: {}, signal: new AbortController().signal });
  return `${out.text}${err.text}[${status}]`.replaceAll(side, '@');
}

describe('newer names of options', () => {
  beforeAll(async () => {
    expect(await cli(`create -q -f qcow2 ${path('base')} 1M`, '-')).toBe('[0]');
  });

  it.each(PAIRS.map(([older, newer], i) => ({ older, newer, i })))('$newer', async ({ older, newer, i }) => {
    const [a, b] = [path(`older${i}`), path(`newer${i}`)];
    mkdirSync(a);
    mkdirSync(b);
    const expected = await cli(older, a);
    expect(expected).not.toContain('unrecognized');
    expect(await cli(newer, b)).toBe(expected);
    if (older.includes('@x') && expected.endsWith('[0]')) {
      expect(readFileSync(`${b}/x`)).toEqual(readFileSync(`${a}/x`));
    }
  });
});
