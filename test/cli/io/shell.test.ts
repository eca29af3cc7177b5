/** The shell over images of its own: what only the shell itself can show. The commands are compared with the real one in test/interop. */
import { readFileSync, statSync } from 'node:fs';
import { beforeEach, describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.ts';
import { Interruption, MemorySink, makeCli } from '../../../src/cli/console.ts';
import { DEFAULTS } from '../../../src/cli/io/control.ts';
import { Opener } from '../../../src/cli/io/opening.ts';
import { Session } from '../../../src/cli/io/session.ts';
import { execute, runCommands, runInput } from '../../../src/cli/io/shell.ts';
import { run } from '../../../src/cli/main.ts';
import { Objects } from '../../../src/cli/objects.ts';
import type { BreakpointNews, Breakpoints } from '../../../src/core/breakpoints.ts';
import { createImage, openImage } from '../../../src/node.ts';
import { scratch } from '../../support/scratch.ts';

const path = scratch();
const KiB = 1024;
const MiB = 1024 * KiB;

interface Said {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

async function io(
  args: readonly string[],
  choice: { input?: AsyncIterable<Uint8Array>; signal?: AbortSignal } = {},
): Promise<Said> {
  const out = new MemorySink();
  const err = new MemorySink();
  const signal = choice.signal ?? new AbortController().signal;
  const input = choice.input === undefined ? {} : { input: choice.input };
  const status = await run({ calledAs: 'cowdisk', args: ['io', ...args], out, err, env: {}, signal, ...input });
  return { status, out: out.text, err: err.text };
}

const commands = (...lines: string[]): string[] => lines.flatMap((line) => ['-c', line]);

describe('the io command', () => {
  const disk = path('disk.qcow2');

  beforeEach(() => createImage(disk, { format: 'qcow2', size: 4 * MiB }));

  it('says why a request failed, in words of its own', async () => {
    const { status, out } = await io([...commands('read 4M 512', 'write -c 512 64k'), disk]);
    expect(status).toBe(1);
    expect(out).toContain('read failed: qcow2 "');
    expect(out).toContain('passes the end of the disk at 0x400000');
  });

  it('is quiet of how it guessed a raw disk only when asked', async () => {
    const raw = path('some.raw');
    await createImage(raw, { format: 'raw', size: MiB });
    expect((await io(['-c', 'length', raw])).err).toContain('is taken for raw');
    expect((await io(['-f', 'raw', '-c', 'length', raw])).err).toBe('');
  });

  it('keeps what was written under every cache mode', async () => {
    for (const mode of ['none', 'writeback', 'writethrough', 'directsync', 'unsafe']) {
      const said = await io(['-t', mode, ...commands('write -q -P 7 100 70000', 'read -q -P 7 100 70000'), disk]);
      expect(said).toEqual({ status: 0, out: '', err: '' });
      expect((await io([...commands('read -q -P 7 100 70000'), disk])).status).toBe(0);
    }
  });

  it('makes every write durable unless another cache mode is asked for', async () => {
    const { session } = await opened(disk);
    await runCommands(session, ['write -q -P 9 0 64k']);
    // Another reader of the file, as one after a crash of this program: nothing was flushed or closed here.
    const other = await openImage(disk, { forceShare: true });
    expect((await other.read(0, 4))[0]).toBe(9);
    await other.close();
    await session.close();
  });

  it('leaves an image alone under a temporary overlay', async () => {
    const before = readFileSync(disk);
    const said = await io([
      '-s',
      ...commands('write -q -P 9 0 3M', 'read -q -P 9 0 3M', 'truncate 8M', 'length'),
      disk,
    ]);
    expect(said).toEqual({ status: 0, out: '8 MiB\n', err: '' });
    expect(readFileSync(disk).equals(before)).toBe(true);
  });

  it('writes patterns from a file that is longer than a buffer', async () => {
    const pattern = path('pattern');
    await createImage(pattern, { format: 'raw', size: 33 * MiB });
    await io(['-f', 'raw', ...commands('write -q -P 1 0 1M', 'write -q -P 2 32M 1M'), pattern]);
    const big = path('big.qcow2');
    await createImage(big, { format: 'qcow2', size: 70 * MiB });
    const lines = [`write -q -s ${pattern} 1M 68M`];
    const checks = [
      'read -q -P 0 0 1M',
      'read -q -P 1 1M 1M',
      'read -q -P 0 2M 31M',
      'read -q -P 2 33M 1M',
      'read -q -P 1 34M 1M',
      'read -q -P 1 67M 1M',
      'read -q -P 0 68M 1M',
    ];
    expect(await io([...commands(...lines, ...checks), big])).toEqual({ status: 0, out: '', err: '' });
  });

  it('compares long reads as one, and dumps them whole', async () => {
    const big = path('long.qcow2');
    await createImage(big, { format: 'qcow2', size: 40 * MiB });
    await io([...commands('write -q -P 1 33M 1k'), big]);
    const { out } = await io([...commands('read -P 0 -s 1 0 40M', 'read -P 0 0 33M'), big]);
    expect(out).toContain('Pattern verification failed at offset 1, 41943039 bytes\nread 41943040/41943040');
    expect(out.match(/failed/g)?.length).toBe(1);
    const dump = (await io(['-r', ...commands('read -v 1 33M'), big])).out.split('\n');
    expect(dump[0]).toMatch(/^00000001: {2}00/);
    expect(dump.filter((line) => /^[0-9a-f]{8}: /.test(line)).length).toBe((33 * MiB) / 16);
    expect(dump.at(-4)).toMatch(/^020ffff1: .* 01 {2}\.{16}$/);
  });

  it('reopens as before where the new options are refused', async () => {
    const said = await io([...commands('reopen -o lazy-refcounts=perhaps', 'write -q 0 1k', 'length'), disk]);
    expect(said.status).toBe(1);
    expect(said.out).toBe('4 MiB\n');
    expect(said.err).toContain("option lazy-refcounts of qcow2: expected 'on' or 'off'");
  });

  it('copies whole clusters that are read, and nothing over what is being written', async () => {
    const top = path('top.qcow2');
    await io([...commands('write -q -P 5 0 1M'), disk]);
    await createImage(top, { format: 'qcow2', backing: { name: 'disk.qcow2', format: 'qcow2' } });
    const lines = [
      'aio_write -q -P 6 68k 4k',
      'aio_read -q 0 200k',
      'aio_write -q -P 7 8k 4k',
      'aio_flush',
      'read -q -P 6 68k 4k',
      'read -q -P 7 8k 4k',
      'read -q -P 5 0 8k',
      'alloc 0 4M',
    ];
    expect(await io(['-C', ...commands(...lines), top])).toEqual({
      status: 0,
      out: '262144/4194304 bytes allocated at offset 0 bytes\n',
      err: '',
    });
  });

  it('takes lines however they are cut', async () => {
    const text = 'length\nwrite -q 0 1k\nread -q -P 0xcd 0 1k\n\nlength';
    async function* bytes(): AsyncGenerator<Uint8Array> {
      for (const byte of Buffer.from(text)) yield Uint8Array.of(byte);
    }
    expect(await io([disk], { input: bytes() })).toEqual({
      status: 0,
      out: 'cowdisk> 4 MiB\ncowdisk> cowdisk> cowdisk> cowdisk> 4 MiB\ncowdisk> ',
      err: '',
    });
  });

  it('ends when it is interrupted, with everything written that was begun', async () => {
    const controller = new AbortController();
    async function* input(): AsyncGenerator<Uint8Array> {
      yield Buffer.from('aio_write -q -P 8 0 1M\nsleep 100000\nwrite -P 1 0 1M\n');
    }
    const running = io(['-t', 'writeback', disk], { input: input(), signal: controller.signal });
    setImmediate(() => controller.abort(new Interruption('SIGINT')));
    expect((await running).status).toBe(130);
    expect((await io([...commands('read -q -P 8 0 1M'), disk])).status).toBe(0);
  });

  it('leaves no temporary file behind', async () => {
    const { session, opener } = await opened(disk);
    await session.close();
    const over = await opener.open({ ...DEFAULTS, source: source(disk), label: disk, overlay: true });
    const file = over.image.node.children[0]?.node.name ?? '';
    await over.image.write(0, new Uint8Array(MiB).fill(1));
    expect(statSync(file, { throwIfNoEntry: false }) === undefined || process.platform === 'win32').toBe(true);
    await over.close();
    expect(statSync(file, { throwIfNoEntry: false })).toBeUndefined();
  });
});

const source = (name: string) => ({
  label: name,
  name,
  shown: undefined,
  format: undefined,
  options: new Map<string, string>(),
});

async function opened(
  disk: string,
  out = new MemorySink(),
): Promise<{ session: Session; opener: Opener; out: MemorySink; err: MemorySink }> {
  const err = new MemorySink();
  const personality = { program: 'qemu-io', qemu: true } as const;
  const cli = makeCli(personality, 'io', { out, err }, {}, new AbortController().signal);
  const opener = new Opener(cli, new Objects(), {});
  const session = new Session(cli, opener, false);
  session.adopt(await opener.open({ ...DEFAULTS, source: source(disk), label: disk }));
  return { session, opener, out, err };
}

/** Holds requests by the tests' own hand. */
class FakeBreakpoints implements Breakpoints {
  readonly waiting = new Map<string, string>();
  readonly held = new Map<string, () => void>();
  #news: BreakpointNews | undefined;

  set(event: string, tag: string): void {
    if (event !== 'read_aio') throw new BlockError('NOT_FOUND', `no event "${event}"`);
    this.waiting.set(event, tag);
  }

  remove(tag: string): void {
    const found = [...this.waiting].find(([, other]) => other === tag);
    if (found === undefined && !this.held.has(tag)) throw new BlockError('NOT_FOUND', `no breakpoint "${tag}"`);
    if (found !== undefined) this.waiting.delete(found[0]);
    this.held.get(tag)?.();
  }

  resume(tag: string): void {
    const go = this.held.get(tag);
    if (go === undefined) throw new BlockError('NOT_FOUND', `no request "${tag}"`);
    this.held.delete(tag);
    this.#news?.('resumed', tag);
    go();
  }

  isHeld(tag: string): boolean {
    return this.held.has(tag);
  }

  observe(news: BreakpointNews): () => void {
    this.#news = news;
    return () => {
      this.#news = undefined;
    };
  }

  async pass(event: string): Promise<void> {
    const tag = this.waiting.get(event);
    if (tag === undefined) return;
    this.waiting.delete(event);
    const released = new Promise<void>((resolve) => {
      this.held.set(tag, resolve);
    });
    this.#news?.('held', tag);
    await released;
  }
}

describe('breakpoints of a filter below', () => {
  it('are set, waited for, resumed and removed by the commands', async () => {
    const disk = path('held.qcow2');
    await createImage(disk, { format: 'qcow2', size: MiB });
    const { session, out, err } = await opened(disk);
    const breakpoints = new FakeBreakpoints();
    const file = session.image.node.children[0]?.node as { breakpoints?: Breakpoints };
    Object.defineProperty(file, 'breakpoints', { value: breakpoints });
    const { node } = session.image;
    const plain = node.read.bind(node);
    Object.defineProperty(node, 'read', {
      value: async (offset: number, into: Uint8Array) => {
        await breakpoints.pass('read_aio');
        await plain(offset, into);
      },
    });
    await runCommands(session, [
      'break nothing A',
      'remove_break A',
      'resume A',
      'wait_break A',
      'break read_aio A',
      'aio_read -q -P 0 0 512',
      'wait_break A',
      'length',
      'resume A',
      'aio_flush',
      'break read_aio B',
      'remove_break B',
      'read -q 0 512',
      'break read_aio C',
      'aio_read -q 0 512',
      'wait_break C',
    ]);
    await execute(session, 'remove_break C');
    await session.close();
    expect(err.text).toBe('');
    expect(out.text.split('\n')).toEqual([
      'Could not set breakpoint: No such file or directory',
      'Could not remove breakpoint A: No such file or directory',
      'Could not resume request: No such file or directory',
      'Could not wait for a request at A: no request is under way',
      "blkdebug: Suspended request 'A'",
      '1 MiB',
      "blkdebug: Resuming request 'A'",
      "blkdebug: Suspended request 'C'",
      '',
    ]);
  });

  it('are not there without one', async () => {
    const disk = path('free.qcow2');
    await createImage(disk, { format: 'qcow2', size: MiB });
    const { session, out } = await opened(disk);
    await runInput(session, lines('break read_aio A\nwait_break A\n'), '');
    await session.close();
    expect(out.text).toBe(
      'Could not set breakpoint: Operation not supported\nCould not wait for a request at A: Operation not supported\n',
    );
  });
});

async function* lines(text: string): AsyncGenerator<Uint8Array> {
  yield Buffer.from(text);
}
