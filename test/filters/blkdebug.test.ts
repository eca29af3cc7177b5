/** blkdebug over a store in memory: rules, states, breakpoints, names and limits. */
import { describe, expect, it } from 'vitest';
import type { Breakpoints } from '../../src/core/breakpoints.ts';
import { ExtentList } from '../../src/core/extent.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { blkdebug } from '../../src/filters/blkdebug.ts';
import { BLOCK_EVENTS } from '../../src/filters/blkdebug-events.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { openFilter } from '../support/filters.ts';

const KiB = 1024;

function open(options: Record<string, string>, image: BlockNode = new MemoryStore({ size: 64 * KiB })) {
  return openFilter(blkdebug, { children: { image }, options });
}

/** What a request ends with: `ok`, or the error's number. */
async function endOf(request: () => unknown): Promise<string> {
  try {
    await request();
    return 'ok';
  } catch (error) {
    return (error as { details: { errno: string } }).details.errno;
  }
}

const read = (node: BlockNode, offset = 0, length = 512) => endOf(() => node.read(offset, new Uint8Array(length)));
const write = (node: BlockNode, offset = 0, length = 512) => endOf(() => node.write(offset, new Uint8Array(length)));

describe('a rule of blkdebug', () => {
  it('fails every request from its event on', async () => {
    const node = await open({ 'inject-error.0.event': 'l2_load', 'inject-error.0.errno': '28' });
    expect(await read(node)).toBe('ok');
    await node.event?.('l2_load');
    expect(await read(node)).toBe('ENOSPC');
    expect(await write(node)).toBe('ENOSPC');
    expect(await endOf(() => node.writeZeroes(0, 512))).toBe('ENOSPC');
    expect(await endOf(() => node.discard(0, 512))).toBe('ENOSPC');
    expect(await endOf(() => node.flush())).toBe('ENOSPC');
  });

  it('fails one request where it says once, and is gone', async () => {
    const node = await open({ 'inject-error.0.event': 'none', 'inject-error.0.once': 'on' });
    expect(await read(node)).toBe('EIO');
    expect(await read(node)).toBe('ok');
    await node.event?.('none');
    expect(await read(node)).toBe('ok');
  });

  it('fails only requests that touch its sector', async () => {
    const node = await open({ 'inject-error.0.event': 'none', 'inject-error.0.sector': '2' });
    expect(await read(node, 0, 1024)).toBe('ok');
    expect(await read(node, 512, 513)).toBe('EIO');
    expect(await read(node, 1025, 10)).toBe('ok');
    expect(await endOf(() => node.flush())).toBe('ok');
  });

  it.each(['read', 'write', 'write-zeroes', 'discard', 'flush', 'block-status'])(
    'fails only requests of its kind: %s',
    async (iotype) => {
      const node = await open({ 'inject-error.0.event': 'l1_update', 'inject-error.0.iotype': iotype });
      const list = new ExtentList(8);
      const requests: Record<string, () => unknown> = {
        read: () => node.read(0, new Uint8Array(512)),
        write: () => node.write(0, new Uint8Array(512)),
        'write-zeroes': () => node.writeZeroes(0, 512),
        discard: () => node.discard(0, 512),
        flush: () => node.flush(),
        'block-status': () => {
          list.reset(0);
          return node.extents(0, 512, list);
        },
      };
      await node.event?.('l1_update');
      for (const [kind, request] of Object.entries(requests)) {
        expect(await endOf(request), kind).toBe(kind === iotype ? 'EIO' : 'ok');
      }
    },
  );

  it('leaves the status alone where it names no kind', async () => {
    const node = await open({ 'inject-error.0.event': 'none' });
    const list = new ExtentList(8);
    list.reset(0);
    expect(await endOf(() => node.extents(0, 512, list))).toBe('ok');
  });

  it('fails at once where it says immediately, and later otherwise', async () => {
    const soon = await open({ 'inject-error.0.event': 'none', 'inject-error.0.immediately': 'on' });
    expect(() => soon.read(0, new Uint8Array(1))).toThrow(/injected/);
    const later = await open({ 'inject-error.0.event': 'none' });
    const failing = later.read(0, new Uint8Array(1));
    expect(failing).toBeInstanceOf(Promise);
    await expect(failing).rejects.toThrow(
      'blkdebug "blkdebug": injected, read of 0x1 bytes at 0x0: input/output error',
    );
  });

  it('leaves what is below untouched', async () => {
    const below = new MemoryStore({ size: 4096 });
    const node = await open({ 'inject-error.0.event': 'none' }, below);
    expect(await endOf(() => node.write(0, new Uint8Array(512).fill(1)))).toBe('EIO');
    expect(below.bytes().every((byte) => byte === 0)).toBe(true);
  });

  it('asks nothing of a flush that has nothing to flush', async () => {
    const node = await open({ 'inject-error.0.event': 'none', 'inject-error.0.iotype': 'flush' });
    expect(await endOf(() => node.flush())).toBe('ok');
    expect(await write(node)).toBe('ok');
    expect(await endOf(() => node.flush())).toBe('EIO');
  });
});

describe('the states of blkdebug', () => {
  it('begin at 1, and rules hold in theirs only', async () => {
    const node = await open({
      'set-state.0.event': 'write_aio',
      'set-state.0.state': '1',
      'set-state.0.new_state': '2',
      'inject-error.0.event': 'read_aio',
      'inject-error.0.state': '2',
    });
    await node.event?.('read_aio');
    expect(await read(node)).toBe('ok');
    await node.event?.('write_aio');
    expect(await read(node)).toBe('ok');
    await node.event?.('read_aio');
    expect(await read(node)).toBe('EIO');
  });

  it('are looked at before an event changes them', async () => {
    const node = await open({
      'set-state.0.event': 'l2_load',
      'set-state.0.state': '1',
      'set-state.0.new_state': '7',
      'inject-error.0.event': 'l2_load',
      'inject-error.0.state': '7',
    });
    await node.event?.('l2_load');
    expect(await read(node)).toBe('ok');
    await node.event?.('l2_load');
    expect(await read(node)).toBe('EIO');
  });

  it('arm the errors of the last event that had some, the first of them first', async () => {
    const node = await open({
      'inject-error.0.event': 'l2_load',
      'inject-error.0.errno': '28',
      'inject-error.1.event': 'l2_load',
      'inject-error.1.errno': '13',
      'inject-error.2.event': 'l1_update',
      'inject-error.2.errno': '0',
    });
    await node.event?.('l2_load');
    expect(await read(node)).toBe('ENOSPC');
    await node.event?.('write_aio');
    expect(await read(node)).toBe('ENOSPC');
    await node.event?.('l1_update');
    expect(await read(node)).toBe('ok');
  });

  it('know every event by name, and none by another', async () => {
    for (const event of BLOCK_EVENTS) await (await open({ 'inject-error.0.event': event })).close();
    await expect(open({ 'inject-error.0.event': 'L2_LOAD' })).rejects.toMatchObject({ reason: 'blkdebug.value' });
  });

  it('see the steps of writes here: pwritev, its end, zeroes, and what is read around', async () => {
    const seen: string[] = [];
    const steps = [
      'pwritev',
      'pwritev_done',
      'pwritev_zero',
      'pwritev_rmw_head',
      'pwritev_rmw_after_head',
      'pwritev_rmw_tail',
      'pwritev_rmw_after_tail',
    ];
    const node = await open({ align: '4096' });
    const { breakpoints } = node as { breakpoints: Breakpoints };
    breakpoints.observe((what, tag) => {
      if (what === 'held') {
        seen.push(tag);
        queueMicrotask(() => breakpoints.resume(tag));
      }
    });
    const during = async (request: () => unknown): Promise<string[]> => {
      seen.length = 0;
      for (const step of steps) breakpoints.set(step, step);
      await request();
      for (const step of steps) if (!seen.includes(step)) breakpoints.remove(step);
      return [...seen];
    };
    expect(await during(() => node.write(0, new Uint8Array(4096)))).toEqual(['pwritev', 'pwritev_done']);
    expect(await during(() => node.writeZeroes(0, 4096))).toEqual(['pwritev_zero', 'pwritev_done']);
    expect(await during(() => node.write(10, new Uint8Array(10)))).toEqual([
      'pwritev_rmw_head',
      'pwritev_rmw_tail',
      'pwritev_rmw_after_head',
      'pwritev_rmw_after_tail',
      'pwritev',
      'pwritev_done',
    ]);
    expect(await during(() => node.write(10, new Uint8Array(10000)))).toEqual([
      'pwritev_rmw_head',
      'pwritev_rmw_after_head',
      'pwritev_rmw_tail',
      'pwritev_rmw_after_tail',
      'pwritev',
      'pwritev_done',
    ]);
  });
});

describe('a breakpoint', () => {
  async function opened() {
    const node = await open({});
    const news: string[] = [];
    const { breakpoints } = node as { breakpoints: Breakpoints };
    breakpoints.observe((what, tag) => news.push(`${what} ${tag}`));
    return { node, breakpoints, news };
  }

  it('holds the next request at its event, once, until it is resumed', async () => {
    const { node, breakpoints, news } = await opened();
    breakpoints.set('read_aio', 'A');
    let gone = false;
    const held = node.event?.('read_aio')?.then(() => {
      gone = true;
    });
    expect(node.event?.('read_aio')).toBeUndefined();
    await Promise.resolve();
    expect({ gone, held: breakpoints.isHeld('A') }).toEqual({ gone: false, held: true });
    breakpoints.resume('A');
    await held;
    expect(news).toEqual(['held A', 'resumed A']);
    expect(() => breakpoints.resume('A')).toThrow(/no request has the tag 'A'/);
  });

  it('with others of its event holds one request, which needs all of them resumed', async () => {
    const { node, breakpoints, news } = await opened();
    breakpoints.set('read_aio', 'A');
    breakpoints.set('read_aio', 'B');
    const held = node.event?.('read_aio');
    expect(node.event?.('read_aio')).toBeUndefined();
    breakpoints.resume('B');
    expect(breakpoints.isHeld('A')).toBe(true);
    breakpoints.resume('A');
    await held;
    expect(news).toEqual(['held B', 'held A', 'resumed B', 'resumed A']);
  });

  it('is removed with the requests it holds', async () => {
    const { node, breakpoints } = await opened();
    breakpoints.set('read_aio', 'A');
    breakpoints.set('write_aio', 'A');
    const held = node.event?.('read_aio');
    breakpoints.remove('A');
    await held;
    expect(node.event?.('write_aio')).toBeUndefined();
    expect(() => breakpoints.remove('A')).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }));
  });

  it('is refused at events that do not exist', async () => {
    const { breakpoints } = await opened();
    expect(() => breakpoints.set('foo', 'A')).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }));
  });

  it('holds nothing after the filter is closed', async () => {
    const { node, breakpoints } = await opened();
    breakpoints.set('read_aio', 'A');
    breakpoints.set('write_aio', 'B');
    const held = node.event?.('read_aio');
    await node.close();
    await held;
    expect(node.event?.('write_aio')).toBeUndefined();
  });
});

describe('the options of blkdebug', () => {
  it('read rules from a file, before those of the options', async () => {
    const children = { image: new MemoryStore({ size: 4096 }) };
    const files = { 'r.cfg': '[inject-error]\nevent = "none"\nerrno = "13"\n' };
    const options = { config: 'r.cfg', 'inject-error.0.event': 'none' };
    expect(await read(await openFilter(blkdebug, { children, files, options }))).toBe('EACCES');
  });

  it('say which rules file cannot be read', async () => {
    await expect(open({ config: 'gone.cfg' })).rejects.toMatchObject({
      code: 'NOT_FOUND',
      reason: 'blkdebug.config',
      message: expect.stringContaining('could not read the rules file "gone.cfg"') as string,
    });
  });

  it.each([
    [{ align: '3' }, 'align'],
    [{ align: '4G' }, 'align'],
    [{ align: '512', 'max-transfer': '700' }, 'max-transfer'],
    [{ align: '512', 'opt-write-zero': '700' }, 'opt-write-zero'],
    [{ align: '512', 'opt-write-zero': '1k', 'max-write-zero': '1536' }, 'max-write-zero'],
    [{ align: '512', 'opt-discard': '3' }, 'opt-discard'],
    [{ align: '512', 'max-discard': '7' }, 'max-discard'],
  ])('refuse limits that do not fit each other: %j', async (options, name) => {
    await expect(open(options)).rejects.toMatchObject({ reason: 'blkdebug.limit', details: { name } });
  });

  it.each(['take-child-perms', 'unshare-child-perms'])('refuse %s with the reason', async (name) => {
    await expect(open({ [name]: 'write' })).rejects.toThrow(/no permissions of each other/);
  });

  it('have a short form for a rules file and an image', () => {
    expect(blkdebug.parseName?.('a.cfg:b.img')).toEqual({ config: 'a.cfg', 'image.filename': 'b.img' });
    expect(blkdebug.parseName?.(':b:c.img')).toEqual({ 'image.filename': 'b:c.img' });
    expect(() => blkdebug.parseName?.('b.img')).toThrow(/blkdebug:RULES:IMAGE/);
    const named = (options: [string, string][], image: string | undefined) =>
      blkdebug.shortName?.(new Map(options), () => image);
    expect(named([], 'b.img')).toBe('blkdebug::b.img');
    expect(named([['config', 'a.cfg']], 'b.img')).toBe('blkdebug:a.cfg:b.img');
    expect(named([['align', '512']], 'b.img')).toBeUndefined();
    expect(named([['config', 'a:b.cfg']], 'b.img')).toBeUndefined();
    expect(named([], undefined)).toBeUndefined();
  });
});
