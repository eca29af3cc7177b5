/** null-co and null-aio: disks of any size that hold nothing. What is written is gone; for measuring what stands above, and for tests.
 *  Behaviour: QEMU's drivers of these names, which differ in how they wait; here they do not.
 *  Invariant: a read fills its buffer with zeros or leaves it alone, by `read-zeroes`; nothing is ever kept. */
import type { Pending } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { type Clock, SYSTEM_CLOCK, throwIfAborted } from '../base/job.ts';
import { bool, defineOptions, int, type OptionsOf, size } from '../base/options.ts';
import { GiB } from '../base/sizes.ts';
import { EXTENT, type ExtentList } from '../core/extent.ts';
import type { OpenFileOptions, ProtocolDriver } from '../core/protocol.ts';
import {
  BaseStore,
  DEFAULT_LIMITS,
  type IoOptions,
  type StoreLimits,
  type StoreStatus,
  type StoreSupports,
} from '../core/store.ts';

const openOptions = defineOptions({
  size: size({ default: GiB, content: true, help: 'bytes of the disk' }),
  latencyNs: int({ cli: 'latency-ns', default: 0, help: 'nanoseconds that every request takes' }),
  readZeroes: bool({
    cli: 'read-zeroes',
    default: false,
    content: true,
    help: 'reads give zeros; otherwise buffers stay as they are',
  }),
});

export interface NullStoreOptions {
  /** What messages call it; `null-co` by default. */
  readonly name?: string;
  readonly driver?: string;
  /** Bytes. Default 1 GiB. */
  readonly size?: number;
  /** Nanoseconds that every request takes. Default 0. */
  readonly latencyNs?: number;
  /** Default false: the reader's buffer stays as it is. */
  readonly readZeroes?: boolean;
  readonly readOnly?: boolean;
  readonly clock?: Clock;
}

const NANOSECONDS = 1e6;

/** Holds nothing. */
export class NullStore extends BaseStore {
  readonly size: number;
  readonly limits: StoreLimits = DEFAULT_LIMITS;
  readonly supports: StoreSupports;
  readonly #latencyMs: number;
  readonly #readZeroes: boolean;
  readonly #clock: Clock;

  constructor(options: NullStoreOptions = {}) {
    const driver = options.driver ?? 'null-co';
    super(options.name ?? driver, driver);
    this.size = options.size ?? GiB;
    this.#latencyMs = (options.latencyNs ?? 0) / NANOSECONDS;
    this.#readZeroes = options.readZeroes ?? false;
    this.#clock = options.clock ?? SYSTEM_CLOCK;
    const write = options.readOnly !== true;
    this.supports = {
      write,
      truncate: false,
      writeZeroes: write ? 'fast' : 'no',
      discard: false,
      extents: true,
      fua: write,
      sync: this.#latencyMs === 0,
      access: 'random',
    };
  }

  async status(): Promise<StoreStatus> {
    if (this.closed) throw new BlockError('CLOSED', `"${this.name}": status after close`);
    return { allocatedBytes: 0 };
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    // Past the end there are zeros everywhere, by the contract of stores.
    if (this.#readZeroes) into.fill(0);
    else if (offset + into.length > this.size) into.fill(0, Math.max(0, this.size - offset));
    return this.#takeTime(options);
  }

  protected _write(_offset: number, _from: Uint8Array, options: IoOptions | undefined): Pending {
    return this.#takeTime(options);
  }

  protected _writeZeroes(_offset: number, _length: number, options: IoOptions | undefined): Pending {
    return this.#takeTime(options);
  }

  protected _discard(): Pending {
    return undefined;
  }

  /** Nobody knows what is there, unless it is zeros. */
  protected _extents(offset: number, length: number, into: ExtentList): Pending {
    const inside = Math.max(0, Math.min(length, this.size - offset));
    const zero = EXTENT.present + EXTENT.zero;
    if (inside === 0) {
      into.add(length, zero);
      return undefined;
    }
    const added = this.#readZeroes ? into.add(inside, zero, offset, this.name) : into.add(inside, 0);
    if (added && inside < length) into.add(length - inside, zero);
    return undefined;
  }

  protected _flush(options: IoOptions | undefined): Pending {
    return this.#takeTime(options);
  }

  protected _truncate(): Pending {
    return undefined;
  }

  protected async _close(): Promise<void> {}

  #takeTime(options: IoOptions | undefined): Pending {
    const signal = options?.signal;
    throwIfAborted(signal);
    if (this.#latencyMs === 0) return undefined;
    return new Promise<void>((resolve, reject) => {
      const stop = this.#clock.after(this.#latencyMs, () => {
        signal?.removeEventListener('abort', giveUp);
        resolve();
      });
      const giveUp = (): void => {
        stop();
        reject(new BlockError('ABORTED', 'interrupted', { cause: signal?.reason }));
      };
      signal?.addEventListener('abort', giveUp, { once: true });
    });
  }
}

/** Times from here on are none: what a negative one looks like, too. */
const LATENCY_LIMIT = Number.MAX_SAFE_INTEGER;

function openNull(
  driver: string,
  given: OptionsOf<typeof openOptions>,
  { readOnly }: OpenFileOptions,
  name: string,
): NullStore {
  if (given.latencyNs >= LATENCY_LIMIT) {
    throw new BlockError('OPTION', `${driver}: option latency-ns is out of range`, {
      reason: 'null.latency',
      details: { value: given.latencyNs },
    });
  }
  return new NullStore({ ...given, name, driver, readOnly });
}

function nullProtocol(driver: string): ProtocolDriver {
  const onlyName = `${driver}://`;
  const requireName = (name: string): void => {
    if (name === onlyName) return;
    throw new BlockError('INVALID_ARGUMENT', `${driver} "${name}": the only name is ${onlyName}`, {
      reason: 'null.name',
      details: { driver, name },
    });
  };
  return {
    name: driver,
    schemes: [driver],
    graph: {
      openOptions,
      parseName(name) {
        requireName(name);
        return {};
      },
      nameOf: (options) => {
        // How long requests take says nothing about what is there.
        const others = [...options.keys()].filter((key) => key !== 'latency-ns' && key !== 'driver');
        return others.length === 0 ? onlyName : undefined;
      },
      open: async (given, options) => openNull(driver, given as OptionsOf<typeof openOptions>, options, onlyName),
    },
    async open(name, options) {
      requireName(name);
      return new NullStore({ name, driver, readOnly: options.readOnly });
    },
    resolve: (_base, relative) => relative,
  };
}

export const nullCo = nullProtocol('null-co');
export const nullAio = nullProtocol('null-aio');
