/** The compiled program as a fuzzer: signals, and what is left when it is gone. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { requireBuild } from '../../interop/transcript-harness.ts';
import { scratch } from '../../support/scratch.ts';

const path = scratch();
const PROGRAM = process.env['COWDISK_PROGRAM'] ?? fileURLToPath(new URL('../../../bin/cowdisk.js', import.meta.url));

interface Started {
  readonly child: ChildProcess;
  /** Of a command that it runs. */
  readonly pid: number;
  /** Where its scratch directories are. */
  readonly temporary: string;
  readonly ended: Promise<{ readonly status: number | string | null; readonly out: string }>;
}

/** Runs it with a command that never ends, and waits until that runs. */
async function started(): Promise<Started> {
  const where = mkdtempSync(path('run-'));
  const temporary = mkdtempSync(path('tmp-'));
  const file = join(where, 'pid');
  const command = `sh -c 'echo $$$$ > ${file}; sleep 600; true'`;
  const args = ['fuzz', '-f', 'cow', '-j', '1', '-c', command, '--timeout', '500'];
  const child = spawn(PROGRAM, args, {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, TMPDIR: temporary },
  });
  let out = '';
  child.stdout.on('data', (text: Buffer) => {
    out += text.toString();
  });
  const ended = new Promise<{ status: number | string | null; out: string }>((resolve) => {
    child.on('close', (status, signal) => resolve({ status: status ?? signal, out }));
  });
  let text = '';
  while (!text.endsWith('\n')) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    try {
      text = readFileSync(file, 'utf8');
    } catch {
      // not yet
    }
  }
  return { child, pid: Number(text), temporary, ended };
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

async function gone(pid: number): Promise<boolean> {
  for (let i = 0; i < 500 && isAlive(pid); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  return !isAlive(pid);
}

describe.skipIf(process.platform === 'win32')('the program, interrupted', () => {
  beforeAll(() => {
    if (process.env['COWDISK_PROGRAM'] === undefined) requireBuild();
  });

  it('ends the command that runs, tells what there is, and leaves nothing', { timeout: 60_000 }, async () => {
    const { child, pid, temporary, ended } = await started();
    child.kill('SIGINT');
    expect(await ended).toEqual({ status: 130, out: '1 image, 1 run: nothing found; interrupted\n' });
    expect(await gone(pid)).toBe(true);
    expect(readdirSync(temporary)).toEqual([]);
  });
});
