/** Shows how far a job is: qemu-img's percentage, a bar on a terminal, or JSON lines. Owns clocks and throttling; jobs only count.
 *  Invariants: progress never fails a job; what is written is bounded by time or by percent, however often a job reports. */
import type { Progress } from '../base/job.ts';
import type { Cli, Sink } from './console.ts';
import { Failure } from './failure.ts';
import { humanSize, progressLine } from './render/human.ts';

export type ProgressForm = 'none' | 'qemu' | 'bar' | 'json';

const BAR_INTERVAL_MS = 100;
const JSON_INTERVAL_MS = 250;
const BAR_CELLS = 28;

/** The form that the options and the terminal ask for.
 *  @param asked the value of `--progress`, `''` for a bare `-p`, `undefined` when not given.
 *  @throws {@link Failure} for forms there are not. */
export function progressForm(cli: Cli, asked: string | undefined, quiet: boolean): ProgressForm {
  if (quiet) return 'none';
  if (cli.personality.qemu) return asked === undefined ? 'none' : 'qemu';
  switch (asked) {
    case undefined:
    case 'auto':
      return cli.err.isTerminal ? 'bar' : 'none';
    case '':
      return cli.err.isTerminal ? 'bar' : 'qemu';
    case 'bar':
    case 'json':
    case 'qemu':
    case 'none':
      return asked;
    default:
      throw new Failure(`--progress: expected auto, bar, json, qemu or none, not '${asked}'`);
  }
}

/** One job's progress. `end` must be called whatever happens. */
export class ProgressDisplay {
  readonly #cli: Cli;
  readonly #out: Sink;
  readonly #form: ProgressForm;
  /** Percent that must have passed before the qemu form prints again. */
  readonly #minStep: number;
  readonly #start = performance.now();
  #lastTime = Number.NEGATIVE_INFINITY;
  #lastPercent = 0;
  #latest: Progress = { phase: '', done: 0, total: 0 };
  #drawn = false;
  readonly #onUserSignal = (): void => {
    this.#cli.err.write(`    (${percentOf(this.#latest).toFixed(2)}/100%)\n`);
  };

  /** @param to where the qemu form goes, when standard output is taken */
  constructor(cli: Cli, form: ProgressForm, minStep: number, to: Sink = cli.out) {
    this.#cli = cli;
    this.#out = to;
    this.#form = form;
    this.#minStep = minStep;
    if (form === 'qemu') to.write(progressLine(0));
    if (process.platform !== 'win32') process.on('SIGUSR1', this.#onUserSignal);
  }

  readonly update = (progress: Progress): void => {
    this.#latest = progress;
    const now = performance.now();
    const percent = percentOf(progress);
    switch (this.#form) {
      case 'none':
        return;
      case 'qemu':
        if (percent - this.#lastPercent < this.#minStep && (percent < 100 || this.#lastPercent === 100)) return;
        this.#lastPercent = percent;
        this.#out.write(progressLine(percent));
        return;
      case 'json':
        if (now - this.#lastTime < JSON_INTERVAL_MS) return;
        this.#lastTime = now;
        this.#cli.err.write(`${JSON.stringify(this.#facts(now))}\n`);
        return;
      case 'bar':
        if (now - this.#lastTime < BAR_INTERVAL_MS) return;
        this.#lastTime = now;
        this.#cli.err.write(`\r${this.#bar(now)}\x1b[K`);
        this.#drawn = true;
    }
  };

  /** The job is done: all of it. To be followed by {@link end}. */
  complete(): void {
    if (this.#form === 'qemu') this.#out.write(progressLine(100));
  }

  /** No more will come.
   *  @param outcome for the JSON form's last line. */
  end(outcome: 'done' | 'failed'): void {
    process.off('SIGUSR1', this.#onUserSignal);
    if (this.#form === 'qemu') this.#out.write('\n');
    if (this.#form === 'bar' && this.#drawn) this.#cli.err.write('\r\x1b[K');
    if (this.#form === 'json') {
      this.#cli.err.write(`${JSON.stringify({ ...this.#facts(performance.now()), event: outcome })}\n`);
    }
  }

  #facts(now: number): Record<string, unknown> {
    const { phase, done, total } = this.#latest;
    const seconds = (now - this.#start) / 1000;
    const rate = seconds > 0 ? done / seconds : 0;
    return {
      event: 'progress',
      phase,
      done,
      // Not known before a stream has ended.
      total: Number.isFinite(total) ? total : null,
      percent: !Number.isFinite(total) ? null : Math.round(percentOf(this.#latest) * 100) / 100,
      seconds: Math.round(seconds * 1000) / 1000,
      bytesPerSecond: Math.round(rate),
      secondsLeft: rate > 0 && Number.isFinite(total) ? Math.round((total - done) / rate) : null,
    };
  }

  #bar(now: number): string {
    const percent = percentOf(this.#latest);
    const seconds = (now - this.#start) / 1000;
    const rate = seconds > 0 ? this.#latest.done / seconds : 0;
    if (!Number.isFinite(this.#latest.total)) return `${humanSize(this.#latest.done)}  ${humanSize(rate)}/s`;
    const filled = Math.floor((percent / 100) * BAR_CELLS);
    const cells =
      '='.repeat(filled) + (filled < BAR_CELLS ? '>' : '') + ' '.repeat(Math.max(0, BAR_CELLS - filled - 1));
    const colour = (this.#cli.env['NO_COLOR'] ?? '') === '' && this.#cli.env['TERM'] !== 'dumb';
    const bar = colour ? `\x1b[36m${cells}\x1b[0m` : cells;
    const left = rate > 0 ? duration((this.#latest.total - this.#latest.done) / rate) : '-:--';
    const text = ` ${percent.toFixed(1).padStart(5)}%  ${humanSize(rate)}/s  ETA ${left}`;
    return BAR_CELLS + 2 + text.length > this.#cli.err.columns ? text.trim() : `[${bar}]${text}`;
  }
}

function percentOf(progress: Progress): number {
  return progress.total > 0 ? Math.min(100, (progress.done / progress.total) * 100) : 0;
}

/** `0:07`, `3:25`, `1:02:03`. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const two = (value: number): string => String(value).padStart(2, '0');
  const minutes = Math.floor(whole / 60) % 60;
  const hours = Math.floor(whole / 3600);
  return hours > 0 ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}
