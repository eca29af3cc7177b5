/** A layer as a whole: its own status, emptying, another backing file, detaching. */
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../src/base/errors.ts';
import { ExtentList } from '../../src/core/extent.ts';
import type { FormatNode } from '../../src/core/format.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FakeFormat, type FakeOptions, UNIT } from '../support/fake-format.ts';

function rig(options: FakeOptions = {}, facets: Partial<FormatNode> = {}): { format: FakeFormat; disk: MappedNode } {
  const format = new FakeFormat({ backing: MemoryStore.from(new Uint8Array(8 * UNIT).fill(7)), ...options });
  Object.assign(format, facets);
  return { format, disk: mappedNode(format, { name: 'disk' }) };
}

/** Takes a call away that the class has. */
function without(call: keyof FormatNode): Partial<FormatNode> {
  return Object.fromEntries([[call, undefined]]);
}

async function layer(disk: MappedNode): Promise<string[]> {
  const list = new ExtentList();
  list.reset(0);
  await disk.layerExtents(0, disk.size, list);
  return [...list].map(
    ({ start, length, present, zero, depth }) =>
      `${start / UNIT}+${length / UNIT} ${present ? (zero ? 'zero' : 'data') : 'not here'} ${depth}`,
  );
}

describe('the status of a layer', () => {
  it('says nothing of what lies below', async () => {
    const { format, disk } = rig();
    format.allocate(1, 2);
    format.mark(4, 'zero');
    expect(await layer(disk)).toEqual([
      '0+1 not here 0',
      '1+2 data 0',
      '3+1 not here 0',
      '4+1 zero 0',
      '5+3 not here 0',
    ]);
  });

  it('is refused past the end and after closing', async () => {
    const { disk } = rig();
    const list = new ExtentList();
    expect(() => disk.layerExtents(0, disk.size + 1, list)).toThrow(BlockError);
    await disk.close();
    expect(() => disk.layerExtents(0, 1, list)).toThrow(/after close/);
  });
});

describe('emptying', () => {
  it('drops what is held, in whole units, so that the backing file shows, and flushes at the end', async () => {
    const { format, disk } = rig({ units: 8, size: 7.5 * UNIT });
    format.allocate(1, 2);
    format.mark(4, 'zero');
    format.allocate(7, 1);
    format.calls.length = 0;
    const seen: string[] = [];
    disk.observers.add((offset, length) => seen.push(`${offset}+${length}`));
    await disk.makeEmpty();
    expect(format.called('unmap')).toEqual([
      `unmap ${UNIT}+${2 * UNIT} backing`,
      `unmap ${4 * UNIT}+${UNIT} backing`,
      `unmap ${7 * UNIT}+${UNIT} backing`,
    ]);
    expect(format.calls.at(-1)).toBe('flush');
    expect(seen).toEqual([`0+${7.5 * UNIT}`]);
  });

  it('tells nobody where the backing file holds the same', async () => {
    const { disk } = rig({ units: 8, size: 7.5 * UNIT });
    const seen: number[] = [];
    disk.observers.add((offset) => seen.push(offset));
    await disk.makeEmpty({ sameContent: true });
    expect(seen).toEqual([]);
  });

  it("is the format's own business where it has a way, and nothing else runs meanwhile", async () => {
    let held: unknown;
    const { format, disk } = rig(
      {},
      {
        makeEmpty: async () => {
          held = disk.read(0, new Uint8Array(1));
        },
      },
    );
    format.allocate(0, 8);
    expect(disk.read(0, new Uint8Array(1))).toBeUndefined();
    await disk.makeEmpty();
    expect(held).toBeInstanceOf(Promise);
    await held;
    expect(format.called('unmap')).toEqual([]);
  });

  it('is refused where the format cannot, and needs no way where nothing is held', async () => {
    for (const unmap of [undefined, async () => 'unsupported' as const]) {
      const { format, disk } = rig({}, unmap === undefined ? without('unmap') : { unmap });
      if (unmap !== undefined) await disk.makeEmpty();
      format.allocate(2, 1);
      await expect(disk.makeEmpty()).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: 'engine.empty' });
    }
  });

  it('can be aborted between two ranges', async () => {
    const { format, disk } = rig();
    for (const unit of [0, 2, 4]) format.allocate(unit, 1);
    const stop = new AbortController();
    format.hooks.unmap = () => {
      stop.abort();
      return undefined;
    };
    await expect(disk.makeEmpty({ signal: stop.signal })).rejects.toMatchObject({ code: 'ABORTED' });
    expect(format.called('unmap').length).toBe(1);
  });
});

describe('facets that run alone', () => {
  it('get what they are given, and their failures are told', async () => {
    const given: unknown[] = [];
    const { disk } = rig(
      {},
      {
        changeBacking: async (backing) => void given.push(backing),
        detach: async () => {
          throw new BlockError('INVALID_ARGUMENT', 'not everything is here', { details: { missing: 5 } });
        },
      },
    );
    await disk.changeBacking({ name: 'b', format: 'raw' });
    await disk.changeBacking(undefined);
    expect(given).toEqual([{ name: 'b', format: 'raw' }, undefined]);
    await expect(disk.detach()).rejects.toMatchObject({ details: { missing: 5 } });
  });

  it('are refused where the format has none, or is read-only', async () => {
    const calls = (disk: MappedNode) => [disk.changeBacking(undefined), disk.detach(), disk.makeEmpty()];
    const { disk } = rig({}, without('unmap'));
    const reasons = ['engine.change-backing', 'engine.detach', 'engine.empty'];
    for (const [i, call] of calls(disk).entries()) {
      await expect(call).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: reasons[i] });
    }
    for (const call of calls(rig({ readOnly: true }).disk)) {
      await expect(call).rejects.toMatchObject({ code: 'READ_ONLY' });
    }
  });
});
