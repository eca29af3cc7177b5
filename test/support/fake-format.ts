/** A format node made by hand: its mapping is an array of units, and every call is noted. For unit tests of the engine.
 *  Unit `i` lies at host offset `(i + 10) * unit` when it is allocated, so that guest and host offsets never agree by accident. */
import type { Pending } from '../../src/base/async.ts';
import type { DataTransform, EngineServices, FormatInfo, FormatNode, WritePlan } from '../../src/core/format.ts';
import type { BlockNode, Child } from '../../src/core/node.ts';
import type { RunKind, RunList } from '../../src/core/run.ts';
import type { ZeroOptions } from '../../src/core/store.ts';
import { ManualStore } from './manual-store.ts';

export const UNIT = 1024;

export interface FakeUnit {
  kind: RunKind;
  /** -1: none. */
  host: number;
  writable: boolean;
}

export function hostOf(unit: number): number {
  return (unit + 10) * UNIT;
}

export interface FakeOptions {
  readonly units?: number;
  /** Bytes; the last unit may be short. */
  readonly size?: number;
  readonly backing?: BlockNode;
  readonly recurse?: 'none' | 'zero' | 'status';
  readonly readOnly?: boolean;
  readonly transform?: DataTransform;
  /** The file; a ManualStore of zeros by default. */
  readonly file?: BlockNode;
}

export class FakeFormat implements FormatNode {
  readonly format = 'fake';
  virtualSize: number;
  readonly unit = UNIT;
  readonly zeroUnit = UNIT;
  readonly recurse: 'none' | 'zero' | 'status';
  readonly readOnly: boolean;
  readonly children: readonly Child[];
  readonly transform: DataTransform | undefined;
  readonly store: ManualStore;
  readonly units: FakeUnit[];
  readonly calls: string[] = [];
  engine: EngineServices | undefined;
  /** What `map` waits for before it fills the list. */
  mapGate: (() => Pending) | undefined;
  /** Units that one `map` call covers at most. */
  mapUnits = Number.POSITIVE_INFINITY;
  /** Bytes of a plan at most. */
  planBytes = Number.POSITIVE_INFINITY;
  planner: ((plan: WritePlan) => WritePlan) | undefined;
  /** Called at the beginning of the named call; may throw or wait. */
  hooks: Partial<
    Record<'prepare' | 'commit' | 'abort' | 'zeroes' | 'unmap' | 'check' | 'flush' | 'close', () => Pending>
  > = {};
  zeroesResult: 'done' | 'unsupported' = 'done';

  constructor(options: FakeOptions = {}) {
    const { units = 8, size = units * UNIT, backing } = options;
    this.virtualSize = size;
    this.recurse = options.recurse ?? 'none';
    this.readOnly = options.readOnly === true;
    this.transform = options.transform;
    this.store = new ManualStore(0, 'file');
    this.store.bytes = new Uint8Array(hostOf(units));
    const node = options.file ?? this.store;
    this.children = [
      { role: 'file', name: 'file', node },
      ...(backing === undefined ? [] : [{ role: 'backing', name: 'backing', node: backing } as const]),
    ];
    this.units = Array.from({ length: units }, () => ({ kind: 'unallocated', host: -1, writable: false }));
  }

  /** Gives units `[first, first + count)` host space filled with `byte + unit`. */
  allocate(first: number, count: number, writable = true, byte = 100): void {
    for (let unit = first; unit < first + count; unit++) {
      this.units[unit] = { kind: 'data', host: hostOf(unit), writable };
      this.store.bytes.fill(byte + unit, hostOf(unit), hostOf(unit) + UNIT);
    }
  }

  mark(unit: number, kind: RunKind, host = -1): void {
    this.units[unit] = { kind, host, writable: false };
  }

  attach(engine: EngineServices): void {
    this.engine = engine;
  }

  map(offset: number, length: number, into: RunList): Pending {
    this.calls.push(`map ${offset}+${length}`);
    const gate = this.mapGate?.();
    if (gate !== undefined) return gate.then(() => this.#fill(offset, length, into));
    this.#fill(offset, length, into);
    return undefined;
  }

  #fill(offset: number, length: number, into: RunList): void {
    const end = Math.min(offset + length, this.virtualSize);
    let at = offset;
    for (let units = 0; at < end && units < this.mapUnits; units++) {
      const index = Math.floor(at / UNIT);
      const { kind, host, writable } = this.units[index] as FakeUnit;
      const step = UNIT - (at % UNIT);
      const hostOffset = host < 0 ? -1 : host + (at % UNIT);
      const more =
        kind === 'encoded' ? into.pushEncoded(step, 0, host, 16) : into.push(kind, step, 0, hostOffset, writable);
      if (!more) return;
      at += step;
    }
  }

  /** An encoded unit decodes to its own number, in every byte. */
  decode(runs: RunList, first: number, count: number, into: Uint8Array): Pending {
    const start = runs.at(first).guestOffset;
    this.calls.push(`decode ${start}+${into.length} (${count})`);
    const pending = this.store.read(runs.at(first).hostOffset, new Uint8Array(16));
    const fill = (): void => {
      for (let i = first; i < first + count; i++) {
        const { guestOffset, length } = runs.at(i);
        into.fill(Math.floor(guestOffset / UNIT), guestOffset - start, guestOffset - start + length);
      }
    };
    if (pending !== undefined) return pending.then(fill);
    fill();
    return undefined;
  }

  async prepareWrite(offset: number, length: number): Promise<WritePlan> {
    this.calls.push(`prepare ${offset}+${length}`);
    await this.hooks.prepare?.();
    const first = Math.floor(offset / UNIT);
    const unit = this.units[first] as FakeUnit;
    const inPlace = unit.kind === 'data' && unit.writable;
    const end = Math.min(offset + length, offset + this.planBytes);
    const plan: WritePlan = {
      guestOffset: offset,
      length: end - offset,
      child: 0,
      hostOffset: hostOf(first) + (offset % UNIT),
      headLength: inPlace ? 0 : offset % UNIT,
      tailLength: inPlace ? 0 : (UNIT - (end % UNIT)) % UNIT,
    };
    return this.planner?.(plan) ?? plan;
  }

  commitWrite(plan: WritePlan): Pending {
    this.calls.push(`commit ${plan.guestOffset}+${plan.length}`);
    const commit = (): void => {
      const end = Math.ceil((plan.guestOffset + plan.length) / UNIT);
      for (let unit = Math.floor(plan.guestOffset / UNIT); unit < end; unit++) {
        this.units[unit] = { kind: 'data', host: hostOf(unit), writable: true };
      }
    };
    const gate = this.hooks.commit?.();
    if (gate !== undefined) return gate.then(commit);
    commit();
    return undefined;
  }

  abortWrite(plan: WritePlan): Pending {
    this.calls.push(`abort ${plan.guestOffset}+${plan.length}`);
    return this.hooks.abort?.();
  }

  async mapZeroes(offset: number, length: number, options: ZeroOptions): Promise<'done' | 'unsupported'> {
    this.calls.push(`zeroes ${offset}+${length}${options.unmap === true ? ' unmap' : ''}`);
    await this.hooks.zeroes?.();
    if (this.zeroesResult === 'unsupported') return 'unsupported';
    for (let at = offset; at < offset + length; at += UNIT) this.mark(Math.floor(at / UNIT), 'zero');
    return 'done';
  }

  async unmap(offset: number, length: number, reveal: 'zero' | 'backing'): Promise<'done'> {
    this.calls.push(`unmap ${offset}+${length} ${reveal}`);
    await this.hooks.unmap?.();
    return 'done';
  }

  checkDataWrite(child: number, hostOffset: number, length: number): Pending {
    this.calls.push(`check ${child} ${hostOffset}+${length}`);
    return this.hooks.check?.();
  }

  flush(): Pending {
    this.calls.push('flush');
    return this.hooks.flush?.() ?? this.store.flush();
  }

  async close(): Promise<void> {
    this.calls.push('close');
    await this.hooks.close?.();
  }

  info(): FormatInfo {
    return {};
  }

  /** Calls whose names begin so. */
  called(name: string): string[] {
    return this.calls.filter((call) => call.startsWith(name));
  }
}
