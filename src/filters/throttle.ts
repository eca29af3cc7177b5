/** throttle: requests wait until the limits of their group let them pass.
 *  Behaviour: QEMU's `throttle` filter. Flushes, status and resizing pass at once; zeroes and discards count as writes of their length.
 *  Invariant: a request reaches the child only after its group has let it pass. */
import type { Pending } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { defineOptions, text } from '../base/options.ts';
import { defineFilter } from '../core/filter.ts';
import type { BlockNode } from '../core/node.ts';
import type { IoOptions, StoreSupports, WriteOptions, ZeroOptions } from '../core/store.ts';
import { FilterNode } from './filter-node.ts';
import { type Direction, ThrottleGroup, type ThrottleMember } from './throttle-group.ts';

export class ThrottleNode extends FilterNode {
  readonly #member: ThrottleMember;

  constructor(name: string, file: BlockNode, group: ThrottleGroup) {
    super(name, 'throttle', file);
    this.#member = group.join();
  }

  override get supports(): StoreSupports {
    return { ...this.inner.supports, sync: false };
  }

  protected override _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    return this.#pass('read', into.length, options, () => super._read(offset, into, options));
  }

  protected override _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.#pass('write', from.length, options, () => super._write(offset, from, options));
  }

  protected override _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    return this.#pass('write', length, options, () => super._writeZeroes(offset, length, options));
  }

  protected override _discard(offset: number, length: number, options: IoOptions | undefined): Pending {
    return this.#pass('write', length, options, () => super._discard(offset, length, options));
  }

  protected override async _close(): Promise<void> {
    this.#member.leave();
  }

  #pass(direction: Direction, bytes: number, options: IoOptions | undefined, request: () => Pending): Pending {
    const waiting = this.#member.take(direction, bytes, options?.signal);
    return waiting === undefined ? request() : afterwards(waiting, request);
  }
}

async function afterwards(waiting: Promise<void>, request: () => Pending): Promise<void> {
  await waiting;
  await request();
}

export const throttle = defineFilter({
  name: 'throttle',
  summary: 'limits requests and bytes per second, for one disk or a group of them',
  children: [{ name: 'file', role: 'file', probed: 'never' }],
  openOptions: defineOptions({
    throttleGroup: text({ cli: 'throttle-group', help: 'id of the throttle-group object' }),
  }),
  listOptions: {},
  async open(context, options) {
    const { name } = context;
    const id = options.throttleGroup;
    if (id === undefined) {
      throw new BlockError('OPTION', `throttle "${name}": no throttle group is given; name one with throttle-group`, {
        reason: 'throttle.group-missing',
      });
    }
    const group = context.objects.get(id);
    if (!(group instanceof ThrottleGroup)) {
      throw new BlockError('NOT_FOUND', `throttle "${name}": there is no throttle group "${id}"`, {
        reason: 'throttle.group',
        details: { group: id },
      });
    }
    const [file] = context.children('file');
    return new ThrottleNode(name, file as BlockNode, group);
  },
});
