import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { completionScript, SHELLS } from '../../src/cli/completion.ts';
import { allVerbSpecs } from '../../src/cli/verbs/index.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();

describe('completion', () => {
  it.each(SHELLS)('of %s knows every verb and its long options', async (shell) => {
    const script = await completionScript(shell);
    for (const spec of await allVerbSpecs()) {
      expect(script).toContain(spec.name);
      for (const option of spec.options) {
        if (option.only === 'qemu' || (option.support !== 'acts' && 'refused' in option.support)) continue;
        for (const name of [option.long, ...(option.moreLong ?? [])]) {
          if (name !== undefined) expect(script).toContain(shell === 'fish' ? `-l ${name}` : `--${name}`);
        }
      }
    }
  });

  it('of bash completes verbs, options and values', async () => {
    const file = path('completion.bash');
    writeFileSync(file, await completionScript('bash'));
    const complete = (...words: string[]): string[] => {
      const list = words.map((word) => `'${word}'`).join(' ');
      const script = `source '${file}'; COMP_WORDS=(${list}); COMP_CWORD=${words.length - 1}; _cowdisk; echo "\${COMPREPLY[@]}"`;
      return execFileSync('bash', ['-c', script], { encoding: 'utf8' }).trim().split(' ');
    };
    expect(complete('cowdisk', 'co')).toEqual(['commit', 'compare', 'convert', 'completion']);
    expect(complete('cowdisk', 'convert', '--backing')).toEqual(['--backing', '--backing-format']);
    expect(complete('cowdisk', 'convert', '-O', 'q')).toEqual(['qcow2']);
    expect(complete('cowdisk', 'info', '--output', 'j')).toEqual(['json']);
    expect(complete('cowdisk', 'help', 'me')).toEqual(['measure']);
  });
});
