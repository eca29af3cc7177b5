/** The compiled program as its users start it: by links, with signals, and with readers that go away. */
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { requireBuild } from '../interop/transcript-harness.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const PROGRAM = process.env['COWDISK_PROGRAM'] ?? fileURLToPath(new URL('../../bin/cowdisk.js', import.meta.url));
const MiB = 1024 * 1024;

interface Ended {
  readonly out: string;
  readonly err: string;
  readonly status: number | string | null;
}

/** Runs the program; `on` sees its standard error as it comes. */
function start(
  args: readonly string[],
  on?: (child: ReturnType<typeof spawn>, err: string) => void,
  program = PROGRAM,
): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    let err = '';
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString();
    });
    child.stderr.on('data', (chunk: Buffer) => {
      err += chunk.toString();
      on?.(child, err);
    });
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ out, err, status: code ?? signal }));
  });
}

/** Sends the signal once, when the first progress has been told. */
function interruptWith(signal: 'SIGINT' | 'SIGTERM'): (child: ReturnType<typeof spawn>, err: string) => void {
  let sent = false;
  return (child, err) => {
    if (sent || !err.includes('\n')) return;
    sent = true;
    child.kill(signal);
  };
}

/** Slow enough that it would take minutes: a signal ends it, or nothing does in time. */
const SLOW = ['convert', '--progress=json', '-r', '1M', '-O', 'raw'];

describe('the program', () => {
  beforeAll(() => {
    if (process.env['COWDISK_PROGRAM'] === undefined) requireBuild();
    writeFileSync(path('source.raw'), Buffer.alloc(256 * MiB, 1));
  });

  it('is qemu-img through a link of that name, from any directory', async () => {
    const link = path('qemu-img');
    symlinkSync(PROGRAM, link);
    const { out, status } = await start(['info', '-f', 'raw', path('source.raw')], undefined, link);
    expect(status).toBe(0);
    expect(out).toContain('virtual size: 256 MiB (268435456 bytes)\n');
    expect((await start(['foo'], undefined, link)).err).toBe(
      "qemu-img: Command not found: foo\nTry 'qemu-img --help' for more information\n",
    );
  });

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('ends on %s with status %s, and leaves no unfinished target', async (signal, status) => {
    const target = path(`new-${signal}.raw`);
    const ended = await start([...SLOW, path('source.raw'), target], interruptWith(signal));
    expect(ended.status).toBe(status);
    expect(ended.err).toContain(`cowdisk: interrupted: the unfinished copy was removed, '${target}' does not exist\n`);
    expect(ended.err).toContain('"event":"failed"');
    expect(existsSync(target)).toBe(false);
  });

  it('leaves a target that was there as it was', async () => {
    const target = path('old.raw');
    writeFileSync(target, 'old content');
    const ended = await start([...SLOW, path('source.raw'), target], interruptWith('SIGINT'));
    expect(ended.err).toContain(`'${target}' is as it was before\n`);
    expect(readFileSync(target, 'utf8')).toBe('old content');
  });

  it('says that a target is incomplete that was written in place', async () => {
    const target = path('place.raw');
    writeFileSync(target, Buffer.alloc(256 * MiB));
    const ended = await start([...SLOW, '-n', path('source.raw'), target], interruptWith('SIGINT'));
    expect(ended.status).toBe(130);
    expect(ended.err).toContain(`interrupted: '${target}' is incomplete\n`);
    expect(statSync(target).size).toBe(256 * MiB);
  });

  it('is quiet when its reader goes away', async () => {
    const content = Buffer.alloc(8 * MiB);
    for (let at = 0; at < content.length; at += 8192) content.fill(1, at, at + 4096);
    writeFileSync(path('stripes.raw'), content);
    const image = path('stripes.qcow2');
    await start(['convert', '-O', 'qcow2', '-o', 'cluster_size=4k', path('stripes.raw'), image]);
    const status = await new Promise((resolve, reject) => {
      const child = spawn(PROGRAM, ['map', '--output=json', image], { stdio: ['ignore', 'pipe', 'pipe'] });
      let err = '';
      child.stderr.on('data', (chunk: Buffer) => {
        err += chunk.toString();
      });
      child.stdout.once('data', () => child.stdout.destroy());
      child.on('error', reject);
      child.on('close', (code) => resolve([code, err]));
    });
    expect(status).toEqual([0, '']);
  });
});
