import { mkdirSync, rmSync } from 'node:fs';
import { it } from 'vitest';
import { compileInto } from './compile.ts';
it('compiles', () => { rmSync('/tmp/hx/code', { recursive: true, force: true }); mkdirSync('/tmp/hx/code', { recursive: true }); compileInto('/tmp/hx/code'); });
