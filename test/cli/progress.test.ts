import { describe, expect, it } from 'vitest';
import { MemorySink, makeCli } from '../../src/cli/console.ts';
import { duration, ProgressDisplay, type ProgressForm, progressForm } from '../../src/cli/progress.ts';

function setUp(qemu: boolean, terminal: boolean, env: Record<string, string> = {}) {
  const out = new MemorySink();
  const err = new MemorySink(terminal);
  const personality = { program: qemu ? 'qemu-img' : 'cowdisk', qemu } as const;
  return { out, err, cli: makeCli(personality, 'convert', { out, err }, env, new AbortController().signal) };
}

function show(form: ProgressForm, percents: readonly number[], env: Record<string, string> = {}) {
  const { out, err, cli } = setUp(form === 'qemu', form === 'bar', env);
  const display = new ProgressDisplay(cli, form, 1);
  for (const percent of percents) display.update({ phase: 'copy', done: percent, total: 100 });
  display.complete();
  display.end('done');
  return { out: out.text, err: err.text };
}

describe('which form of progress is shown', () => {
  it('is that of qemu-img when called by its name and asked', () => {
    const { cli } = setUp(true, true);
    expect(progressForm(cli, undefined, false)).toBe('none');
    expect(progressForm(cli, '', false)).toBe('qemu');
    expect(progressForm(cli, '', true)).toBe('none');
  });

  it('is a bar on a terminal, and nothing elsewhere, unless asked', () => {
    expect(progressForm(setUp(false, true).cli, undefined, false)).toBe('bar');
    expect(progressForm(setUp(false, false).cli, undefined, false)).toBe('none');
    expect(progressForm(setUp(false, false).cli, '', false)).toBe('qemu');
    expect(progressForm(setUp(false, false).cli, 'json', false)).toBe('json');
    expect(progressForm(setUp(false, true).cli, 'json', true)).toBe('none');
    expect(() => progressForm(setUp(false, true).cli, 'foo', false)).toThrow('expected auto, bar, json, qemu or none');
  });
});

describe('progress', () => {
  it('as qemu-img is one line rewritten in place, at most once for each percent', () => {
    const { out, err } = show('qemu', [0.1, 0.2, 1.5, 1.6, 50]);
    expect(out).toBe('    (0.00/100%)\r    (1.50/100%)\r    (50.00/100%)\r    (100.00/100%)\r\n');
    expect(err).toBe('');
  });

  it('as JSON is one object on each line, the last of which tells how it ended', () => {
    const { out, err } = show('json', [10, 100]);
    expect(out).toBe('');
    const lines = err
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(lines[0]).toMatchObject({ event: 'progress', phase: 'copy', done: 10, total: 100, percent: 10 });
    expect(lines.at(-1)).toMatchObject({ event: 'done', done: 100, percent: 100 });
  });

  it('as a bar leaves nothing behind', () => {
    const { out, err } = show('bar', [50]);
    expect(out).toBe('');
    expect(err).toMatch(/50\.0% .* ETA /);
    expect(err.endsWith('\r\u001b[K')).toBe(true);
  });

  it('has no colour where none is wanted', () => {
    expect(show('bar', [50]).err).toContain('\u001b[36m');
    expect(show('bar', [50], { NO_COLOR: '1' }).err).not.toContain('\u001b[36m');
  });

  it('is silent when there is to be none', () => {
    expect(show('none', [50])).toEqual({ out: '', err: '' });
  });

  it('leaves no listener behind', () => {
    const before = process.listenerCount('SIGUSR1');
    show('none', []);
    expect(process.listenerCount('SIGUSR1')).toBe(before);
  });

  it.each([
    [7, '0:07'],
    [205, '3:25'],
    [3723, '1:02:03'],
  ])('shows %s seconds as %s', (seconds, text) => {
    expect(duration(seconds)).toBe(text);
  });
});
