/** A user at a terminal: lines are edited, remembered and completed; what ends meanwhile is told above the line that is being typed. */
import { PassThrough } from 'node:stream';
import { expect, it } from 'vitest';
import { MemorySink, makeCli } from '../../../src/cli/console.ts';
import { DEFAULTS } from '../../../src/cli/io/control.ts';
import { Opener } from '../../../src/cli/io/opening.ts';
import { Session } from '../../../src/cli/io/session.ts';
import { Terminal } from '../../../src/cli/io/terminal.ts';
import { Objects } from '../../../src/cli/objects.ts';
import { createImage } from '../../../src/node.ts';
import { scratch } from '../../support/scratch.ts';

const path = scratch();

interface Desk {
  readonly session: Session;
  readonly out: MemorySink;
  readonly screen: () => string;
  readonly controller: AbortController;
  readonly ended: Promise<void>;
  type(keys: string): void;
}

async function sit(name: string): Promise<Desk> {
  const disk = path(name);
  await createImage(disk, { format: 'qcow2', size: 1024 * 1024 });
  const input = new PassThrough();
  const output = new PassThrough();
  let screen = '';
  output.on('data', (chunk: Buffer) => {
    screen += chunk.toString();
  });
  const out = new MemorySink();
  const controller = new AbortController();
  const cli = makeCli({ program: 'cowdisk', qemu: false }, 'io', { out, err: out }, {}, controller.signal);
  const opener = new Opener(cli, new Objects(), {});
  const terminal = new Terminal('cowdisk> ', { input, output });
  const session = new Session(cli, opener, false, terminal.aside);
  const source = { label: disk, name: disk, shown: undefined, format: undefined, options: new Map<string, string>() };
  session.adopt(await opener.open({ ...DEFAULTS, source, label: disk }));
  const ended = terminal.run(session);
  return { session, out, screen: () => screen, controller, ended, type: (keys) => void input.write(keys) };
}

const TAB = '\t';
const UP = '\u001B[A';
const CTRL_D = '\u0004';

it('completes commands, and has what was typed before', async () => {
  const { type, ended, out, session } = await sit('edited.qcow2');
  type('len');
  type(TAB);
  type('\r');
  type(UP);
  type('\r');
  type('quit\r');
  await ended;
  await session.close();
  expect(out.text).toBe('1 MiB\n1 MiB\n');
});

it('ends with Ctrl-D on a line of its own', async () => {
  const { type, ended, out, session } = await sit('ended.qcow2');
  type('length\r');
  type(CTRL_D);
  await ended;
  await session.close();
  expect(out.text).toBe('1 MiB\n\n');
});

it('shows the line again when a request ends while it is typed', async () => {
  const { type, ended, out, screen, session } = await sit('aside.qcow2');
  type('aio_write 0 64k\r');
  type('leng');
  while (!out.text.includes('wrote')) await new Promise(setImmediate);
  type('th\r');
  type('quit\r');
  await ended;
  await session.close();
  expect(screen()).toContain('leng');
  expect(out.text).toMatch(/^wrote 65536\/65536 bytes at offset 0\n64 KiB, 1 ops; .*\n1 MiB\n$/);
});

it('ends when the user interrupts, whatever is being typed', async () => {
  const { type, ended, controller, session } = await sit('interrupted.qcow2');
  type('sleep 100000\r');
  type('leng');
  setImmediate(() => controller.abort(new Error('interrupted')));
  await ended;
  await session.close();
  expect(session.failed).toBe(true);
});
