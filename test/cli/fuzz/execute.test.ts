import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { execute, type Limits } from '../../../src/cli/fuzz/execute.ts';
import { judge, USUAL_PATTERNS, USUAL_STATUSES } from '../../../src/cli/fuzz/judge.ts';
import { scratch } from '../../support/scratch.ts';

const path = scratch();
const MiB = 1024 * 1024;
const LIMITS: Limits = { seconds: 60, memory: 1024 * MiB, growth: 64 * MiB };
const RULES = { statuses: new Set(USUAL_STATUSES), patterns: USUAL_PATTERNS };
const never = new AbortController().signal;

let next = 0;
function directory(): string {
  const name = path(`run-${next++}`);
  mkdirSync(name);
  return name;
}
const sh = (script: string, limits: Partial<Limits> = {}, signal = never, where = directory()) =>
  execute(['sh', '-c', script], where, { ...LIMITS, ...limits }, signal);
const node = (script: string, limits: Partial<Limits> = {}) =>
  execute([process.execPath, '-e', script], directory(), { ...LIMITS, ...limits }, never);

/** Whether a process of that id is there and no zombie. */
function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

async function gone(pid: number): Promise<boolean> {
  for (let i = 0; i < 200 && isAlive(pid); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  return !isAlive(pid);
}

describe('a command that is run', () => {
  it('tells how it ended, and what it said', async () => {
    expect(await sh('echo out; echo err >&2; exit 3')).toEqual({
      status: 3,
      signal: undefined,
      limit: undefined,
      stderr: 'err\n',
    });
    expect(await sh('kill -SEGV $$')).toMatchObject({ status: undefined, signal: 'SIGSEGV' });
    expect((await execute(['no-such-program-here'], directory(), LIMITS, never)).notRun).toMatch(/ENOENT/);
  });

  it.skipIf(process.platform !== 'linux')('is ended with all that it started when its time is up', async () => {
    const where = directory();
    const outcome = await sh('sleep 600 & echo $! > child; sleep 600', { seconds: 0.4 }, never, where);
    expect(outcome).toMatchObject({ limit: 'time', signal: 'SIGKILL' });
    expect(await gone(Number(readFileSync(`${where}/child`, 'utf8')))).toBe(true);
  });

  it.skipIf(process.platform !== 'linux')('leaves nothing behind when it ends by itself', async () => {
    const where = directory();
    expect(await sh('sleep 600 & echo $! > child', {}, never, where)).toMatchObject({ status: 0, limit: undefined });
    expect(await gone(Number(readFileSync(`${where}/child`, 'utf8')))).toBe(true);
  });

  it.skipIf(process.platform !== 'linux')('is ended when it takes too much memory', async () => {
    const hungry = 'const held = []; for (;;) held.push(Buffer.alloc(1 << 20, 1))';
    expect(await node(hungry, { memory: 200 * MiB })).toMatchObject({ limit: 'memory', signal: 'SIGKILL' });
  });

  it('is ended when it fills the disk or prints without end', async () => {
    const writes = 'for (;;) require("fs").appendFileSync("x", Buffer.alloc(1 << 20, 1))';
    expect(await node(writes, { growth: 8 * MiB })).toMatchObject({ limit: 'growth' });
    expect(await sh('while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done', { growth: MiB })).toMatchObject({
      limit: 'growth',
    });
    const where = directory();
    writeFileSync(`${where}/large`, Buffer.alloc(MiB, 1));
    expect(await sh('truncate -s 10G hole', { growth: MiB / 2 }, never, where)).toMatchObject({ status: 0 });
    expect((await sh('cp large copy', { growth: MiB / 2 }, never, where)).limit).toBe('growth');
  });

  it('is ended when nobody waits any more', async () => {
    const controller = new AbortController();
    const running = sh('sleep 600', {}, controller.signal);
    controller.abort();
    expect(await running).toMatchObject({ signal: 'SIGKILL', limit: undefined });
    expect(await sh('exit 5', {}, controller.signal)).toMatchObject({ status: undefined });
  });
});

describe('a verdict', () => {
  const of = (outcome: object) =>
    judge({ status: undefined, signal: undefined, stderr: '', ...outcome }, 'x $image', '/tmp/run', RULES);

  it.each([
    [{ status: 0 }, undefined],
    [{ status: 1, stderr: 'cowdisk: qcow2 "/tmp/run/image": the TypeError of a name' }, undefined],
    [{ status: 63 }, undefined],
    [{ status: 134 }, 'status'],
    [{ signal: 'SIGABRT', stderr: "qemu-img: ../block.c:1: Assertion `x' failed." }, 'crash'],
    [{ signal: 'SIGKILL', limit: 'time' }, 'hang'],
    [{ signal: 'SIGKILL', limit: 'memory' }, 'memory'],
    [{ status: 0, limit: 'growth' }, 'growth'],
    [{ status: 1, stderr: 'cowdisk: internal error: x is not a function' }, 'message'],
    [{ status: 1, stderr: 'node:fs:1\nTypeError: x is not a function\n    at y' }, 'message'],
    [{ status: 1, stderr: '==1==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x60' }, 'message'],
    [{ status: 0, stderr: 'block/qcow2.c:10:3: runtime error: signed integer overflow' }, 'message'],
  ])('of %j is %s', (outcome, kind) => {
    expect(of(outcome)?.kind).toBe(kind);
  });

  it('is one for what differs in numbers only', () => {
    const one = of({ status: 1, stderr: 'cowdisk: internal error: /tmp/run/image at 0x1000 "a"' });
    const two = of({ status: 1, stderr: 'cowdisk: internal error: /tmp/run/image at 0x20 "b"' });
    expect(one?.signature).toBe(two?.signature);
    expect(one?.reason).toBe('cowdisk: internal error: image at 0x1000 "a"');
    expect(of({ status: 98 })?.signature).not.toBe(of({ status: 99 })?.signature);
  });
});
