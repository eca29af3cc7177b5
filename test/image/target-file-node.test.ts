/** Replacing real files: permissions, owner and symbolic links stay what they were; unsafe targets are not flushed. */
import { chmodSync, lstatSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { convertImage } from '../../src/node.ts';
import { scratch } from '../support/scratch.ts';

const at = scratch();

describe('replacing an existing file', () => {
  it('keeps its permissions', async () => {
    writeFileSync(at('source.raw'), new Uint8Array(512).fill(1));
    writeFileSync(at('old.raw'), 'old');
    chmodSync(at('old.raw'), 0o604);
    await convertImage(at('source.raw'), at('old.raw'));
    expect(statSync(at('old.raw')).mode % 0o1000).toBe(0o604);
    expect(readFileSync(at('old.raw')).length).toBe(512);
  });

  it('keeps the symbolic link that leads to it, and leaves nothing beside either', async () => {
    writeFileSync(at('source2.raw'), new Uint8Array(512).fill(1));
    writeFileSync(at('real.raw'), 'old');
    symlinkSync('real.raw', at('link.raw'));
    await convertImage(at('source2.raw'), at('link.raw'));
    expect(lstatSync(at('link.raw')).isSymbolicLink()).toBe(true);
    expect(readFileSync(at('real.raw')).length).toBe(512);
    expect(readdirSync(at('.')).filter((name) => name.startsWith('.'))).toEqual([]);
  });
});
