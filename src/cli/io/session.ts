/** One run of the shell: the image that is open, the requests that are under way, and whether anything has failed.
 *  Owns the image from `open` to `close`, and what the cache mode asks of writes.
 *  Invariants: an image is closed only when every request on it has ended; a failure of one command never ends the run. */
import type { MaybePromise, Pending } from '../../base/async.ts';
import { isBlockError } from '../../base/errors.ts';
import { alignDown, alignUp } from '../../bytes/align.ts';
import { isZero } from '../../bytes/zeros.ts';
import type { Breakpoints } from '../../core/breakpoints.ts';
import { ExtentList } from '../../core/extent.ts';
import { RangeLock } from '../../core/range-lock.ts';
import type { Image } from '../../image/image.ts';
import type { Cli } from '../console.ts';
import { Failure } from '../failure.ts';
import { ioError, qemuText } from '../render/qemu-text.ts';
import type { Opened, Opener } from './opening.ts';
import { Refusal, refuse } from './refusal.ts';

/** Calls `write`, which prints, while the user may be typing. */
export type Aside = (write: () => MaybePromise<void>) => MaybePromise<void>;

export class Session {
  readonly cli: Cli;
  readonly opener: Opener;
  /** Images are named by options. */
  readonly imageOpts: boolean;
  /** Something went wrong: the exit status of the program. */
  failed = false;
  #opened: Opened | undefined;
  readonly #outstanding = new Set<Promise<void>>();
  /** What ended a request that should not have. */
  #fault: { readonly error: unknown } | undefined;
  /** Ranges whose copying into the image must not meet a write. Used with `-C` only. */
  readonly #copying = new RangeLock();
  /** Stands between the shell's own texts and those of requests that end at a time of their own. */
  readonly #aside: Aside;
  #watched: Breakpoints | undefined;
  readonly #waiters: (() => void)[] = [];

  /** @param aside calls its argument, which writes to the streams while the user may be typing. */
  constructor(cli: Cli, opener: Opener, imageOpts: boolean, aside: Aside = (write) => write()) {
    this.cli = cli;
    this.opener = opener;
    this.imageOpts = imageOpts;
    this.#aside = aside;
  }

  get opened(): Opened | undefined {
    return this.#opened;
  }

  /** The image; commands that need one are not called without. */
  get image(): Image {
    return this.#required.image;
  }

  get #required(): Opened {
    if (this.#opened === undefined) throw new Refusal({ err: "no file open, try 'help open'\n" });
    return this.#opened;
  }

  /** Takes an image over. */
  adopt(opened: Opened): void {
    this.#opened = opened;
  }

  /** Waits for all requests and closes the image. */
  async close(): Promise<void> {
    try {
      await this.drain();
    } finally {
      const opened = this.#opened;
      this.#opened = undefined;
      await opened?.close();
    }
  }

  // ── texts ────────────────────────────────────────────────────────────────────────────────────

  /** Prints what a failure has to say; the run goes on.
   *  @throws what is no failure of a command: mistakes of this program, and interruptions. */
  tell(error: unknown): void {
    this.failed = true;
    if (error instanceof Refusal) {
      if (error.err !== '') this.cli.err.write(error.err);
      if (error.out !== '') this.cli.out.write(error.out);
    } else if (error instanceof Failure) {
      for (const line of error.lines) this.cli.error(line);
      if (error.trailer !== undefined) this.cli.err.write(error.trailer);
    } else if (!isBlockError(error) || error.code !== 'ABORTED') throw error;
  }

  /** `WHAT failed: why`.
   *  @throws what is no failure of the image. */
  requestFailure(what: string, error: unknown): Refusal {
    if (!isBlockError(error) || error.code === 'INTERNAL' || error.code === 'ABORTED') throw error;
    if (this.cli.personality.qemu && error.reason === 'blkverify.mismatch') {
      // QEMU says just this, and ends; the image is to be closed properly.
      return new Refusal({ err: `${qemuText(error).text}\n`, out: `${what} failed: ${ioError(error)}\n` }, error);
    }
    // There the program ends at once.
    if (this.cli.personality.qemu && error.reason === 'quorum.mismatch') {
      throw new Failure([], { trailer: `${qemuText(error).text}\n`, cause: error });
    }
    return refuse(`${what} failed: ${this.cli.personality.qemu ? ioError(error) : error.message}`, error);
  }

  // ── requests beside the commands ─────────────────────────────────────────────────────────────

  /** Requests of aio commands that have not ended. */
  get outstanding(): number {
    return this.#outstanding.size;
  }

  /** Lets a request run beside the commands. What it has to say comes when it ends.
   *  @param request its failures must be {@link Refusal}s; they change no exit status. */
  start(request: () => Promise<() => MaybePromise<void>>): void {
    const running = this.#run(request).finally(() => this.#outstanding.delete(running));
    this.#outstanding.add(running);
  }

  /** Never rejects. */
  async #run(request: () => Promise<() => MaybePromise<void>>): Promise<void> {
    try {
      const say = await request();
      await this.#aside(say);
    } catch (error) {
      if (!(error instanceof Refusal)) this.#fault ??= { error };
      else {
        await this.#aside(() => {
          if (error.err !== '') this.cli.err.write(error.err);
          if (error.out !== '') this.cli.out.write(error.out);
        });
      }
    }
  }

  /** Waits for everything that was started.
   *  @throws what ended one of them and was no failure of the image. */
  async drain(): Promise<void> {
    while (this.#outstanding.size > 0) await Promise.all(this.#outstanding);
    const fault = this.#fault;
    this.#fault = undefined;
    if (fault !== undefined) throw fault.error;
  }

  /** From now on says what happens at these breakpoints. */
  watch(breakpoints: Breakpoints): void {
    if (this.#watched === breakpoints) return;
    this.#watched = breakpoints;
    breakpoints.observe((what, tag) => {
      void this.#aside(() => {
        this.cli.out.write(`blkdebug: ${what === 'held' ? 'Suspended' : 'Resuming'} request '${tag}'\n`);
      });
      for (const waiter of this.#waiters.splice(0)) waiter();
    });
  }

  /** Ends when a request was held, has gone on or has ended. */
  async somethingHappens(): Promise<void> {
    const news = new Promise<void>((resolve) => {
      this.#waiters.push(resolve);
    });
    await Promise.race([news, ...this.#outstanding]);
  }

  // ── reading and writing, as the image was opened ─────────────────────────────────────────────

  /** @param vmState the state of a machine instead of the disk. */
  async read(offset: number, into: Uint8Array, vmState: boolean): Promise<void> {
    const { image, copyOnRead } = this.#required;
    const { node } = image;
    if (vmState) await node.readVmState(offset, into);
    else if (!copyOnRead || into.length === 0) await node.read(offset, into);
    else {
      await this.#alone(offset, into.length, async () => {
        await this.#copyUp(offset, into.length);
        await node.read(offset, into);
      });
    }
  }

  /** Changes a range of the disk, durably where the cache mode or `durable` asks for it. */
  async change(offset: number, length: number, durable: boolean, change: () => Pending): Promise<void> {
    const { image, copyOnRead, writethrough } = this.#required;
    if (copyOnRead) await this.#alone(offset, length, async () => change());
    else await change();
    if (durable || writethrough) await image.flush();
  }

  async #alone(offset: number, length: number, body: () => Promise<void>): Promise<void> {
    const { unit } = this.image.node.format;
    const ticket = this.#copying.acquire(alignDown(offset, unit), alignUp(offset + length, unit));
    try {
      await ticket.waiting;
      await body();
    } finally {
      this.#copying.release(ticket);
    }
  }

  /** Brings what the image does not hold itself into it, whole clusters. */
  async #copyUp(offset: number, length: number): Promise<void> {
    const { node } = this.image;
    const end = Math.min(node.size, alignUp(offset + length, node.format.unit));
    const start = alignDown(Math.min(offset, node.size), node.format.unit);
    const list = new ExtentList(1024);
    for (let at = start; at < end; at = list.end) {
      list.reset(at);
      await node.layerExtents(at, end - at, list);
      for (const extent of list) {
        if (!extent.present) await this.#copyRange(extent.start, extent.start + extent.length);
      }
    }
  }

  async #copyRange(start: number, end: number): Promise<void> {
    const { node } = this.image;
    const bytes = new Uint8Array(Math.min(end - start, COPY_CHUNK));
    for (let at = start; at < end; at += bytes.length) {
      const part = bytes.subarray(0, Math.min(bytes.length, end - at));
      await node.read(at, part);
      if (isZero(part)) await node.writeZeroes(at, part.length);
      else await node.write(at, part);
    }
  }
}

/** Bytes at a time. */
const COPY_CHUNK = 1024 * 1024;
