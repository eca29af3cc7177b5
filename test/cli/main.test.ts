/** The program as a whole, in this process: personalities, dispatch, and how failures are told. */
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../src/base/errors.ts';
import { Interruption, MemorySink, makeCli } from '../../src/cli/console.ts';
import { Failure } from '../../src/cli/failure.ts';
import { personalityOf, report, run } from '../../src/cli/main.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();

interface Said {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

async function cli(calledAs: string, ...args: string[]): Promise<Said> {
  const out = new MemorySink();
  const err = new MemorySink();
  const status = await run({ calledAs, args, out, err, env: {}, signal: new AbortController().signal });
  return { status, out: out.text, err: err.text };
}

function told(error: unknown, options: { env?: Record<string, string>; signal?: AbortSignal } = {}): Said {
  const out = new MemorySink();
  const err = new MemorySink();
  const signal = options.signal ?? new AbortController().signal;
  const made = makeCli({ program: 'cowdisk', qemu: false }, 'info', { out, err }, options.env ?? {}, signal);
  return { status: report(made, error), out: out.text, err: err.text };
}

describe('the name it is called by', () => {
  it.each([
    ['/usr/bin/qemu-img', 'qemu-img'],
    ['qemu-img', 'qemu-img'],
    ['C:\\tools\\qemu-img.exe', 'qemu-img'],
    ['/x/qemu-nbd', 'qemu-nbd'],
    ['/x/qemu-io', 'qemu-io'],
    ['/x/cowdisk.js', 'cowdisk'],
    ['/x/my-qemu-img', 'cowdisk'],
    ['', 'cowdisk'],
  ])('%s makes it %s', (calledAs, program) => {
    expect(personalityOf(calledAs)).toEqual({ program, qemu: program !== 'cowdisk' });
  });

  it('qemu-nbd is refused clearly', async () => {
    expect(await cli('/usr/bin/qemu-nbd', '--version')).toEqual({
      status: 1,
      out: '',
      err: 'qemu-nbd: this program is not part of cowdisk yet; cowdisk, qemu-img and qemu-io are\n',
    });
  });

  it('decides where unknown verbs are pointed to', async () => {
    expect((await cli('cowdisk', 'infos')).err).toBe(
      "cowdisk: there is no command 'infos'; did you mean 'info'?\nTry 'cowdisk help' for more information\n",
    );
    expect((await cli('cowdisk', 'info', '--foo')).err).toContain("Try 'cowdisk help info' for more information\n");
    expect((await cli('qemu-img', 'infos')).err).toBe(
      "qemu-img: Command not found: infos\nTry 'qemu-img --help' for more information\n",
    );
  });

  it('shows in the version: a program that asks qemu-img for it gets a number it knows', async () => {
    expect((await cli('qemu-img', '--version')).out).toMatch(
      /^qemu-img version 7\.2\.\d+ \(cowdisk \d+\.\d+\.\d+\)\n$/,
    );
    expect((await cli('cowdisk', '-V')).out).toMatch(/^cowdisk \d+\.\d+\.\d+\n$/);
  });
});

describe('failures', () => {
  it('have the name of the program before each line, and their own status', () => {
    expect(told(new Failure(['one', 'two'], { status: 63, trailer: 'rest' }))).toEqual({
      status: 63,
      out: '',
      err: 'cowdisk: one\ncowdisk: two\nrest',
    });
  });

  it("of the library are told in the library's words", () => {
    expect(told(new BlockError('IO', 'could not read "a": input/output error'))).toMatchObject({
      status: 1,
      err: 'cowdisk: could not read "a": input/output error\n',
    });
  });

  it('that are mistakes of ours show no stack trace, ask for a report, and show everything to who debugs', () => {
    const error = new BlockError('INTERNAL', 'internal error: lost', {
      details: { at: 5n },
      cause: new Error('below'),
    });
    expect(told(error).err).toMatch(
      /^cowdisk: internal error: lost\ncowdisk: this is a mistake in cowdisk; please report it.*\n$/,
    );
    expect(told(new TypeError('x is undefined'))).toMatchObject({ status: 1 });
    expect(told(new TypeError('x is undefined')).err).not.toContain('main.test.ts');
    const debug = told(error, { env: { COWDISK_DEBUG: '1' } }).err;
    expect(debug).toContain('main.test.ts');
    expect(debug).toContain('caused by: Error: below');
    expect(debug).toContain('"at":"5"');
  });

  it('by interruption have the status of the signal', () => {
    const controller = new AbortController();
    controller.abort(new Interruption('SIGTERM'));
    const aborted = new BlockError('ABORTED', 'interrupted', { cause: controller.signal.reason });
    expect(told(aborted, { signal: controller.signal })).toEqual({
      status: 143,
      out: '',
      err: 'cowdisk: interrupted\n',
    });
    expect(new Interruption('SIGINT').status).toBe(130);
  });
});

describe('the two programs', () => {
  it('print the same JSON, and cowdisk has a short way to ask for it', async () => {
    const image = path('a.qcow2');
    await cli('cowdisk', 'create', '-q', '-f', 'qcow2', image, '1M');
    const expected = await cli('qemu-img', 'info', '--output=json', image);
    expect(JSON.parse(expected.out)).toMatchObject({ format: 'qcow2', 'virtual-size': 1048576 });
    const own = await cli('cowdisk', 'info', '--output=json', image);
    // which has one fact more
    const { locks, ...same } = JSON.parse(own.out);
    expect([locks, same]).toEqual([expect.stringMatching(/^held$|^unavailable$/), JSON.parse(expected.out)]);
    expect(await cli('cowdisk', 'info', '--json', image)).toEqual(own);
    expect((await cli('qemu-img', 'info', '--json', image)).err).toContain("unrecognized option '--json'");
  });

  it('differ in their words for the same error', async () => {
    const name = path('gone');
    expect((await cli('cowdisk', 'info', name)).err).toBe(
      `cowdisk: could not open "${name}": no such file or directory\n`,
    );
    expect((await cli('qemu-img', 'info', name)).err).toBe(
      `qemu-img: Could not open '${name}': Could not open '${name}': No such file or directory\n`,
    );
  });

  it('keep to the policy of references where cowdisk was given one', async () => {
    const [base, top] = [path('base.qcow2'), path('top.qcow2')];
    await cli('cowdisk', 'create', '-q', '-f', 'qcow2', base, '1M');
    await cli('cowdisk', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', top);
    expect((await cli('cowdisk', 'map', top)).status).toBe(0);
    for (const policy of ['deny', 'same-directory']) {
      const { status, err } = await cli('cowdisk', 'map', `--references=${policy}`, top);
      expect(status).toBe(1);
      expect(err).toContain(policy);
    }
    expect((await cli('cowdisk', 'map', '--references=maybe', top)).err).toContain('expected allow');
  });

  it('refuse what would destroy an input', async () => {
    const image = path('input.qcow2');
    await cli('cowdisk', 'create', '-q', '-f', 'qcow2', image, '1M');
    const { status, err } = await cli('cowdisk', 'convert', image, '-O', 'raw', image);
    expect(status).toBe(1);
    expect(err).toContain('the target is one of the inputs');
    expect((await cli('cowdisk', 'check', image)).status).toBe(0);
  });
});
