import { truncateSync, writeFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import type { BlockNode } from '../../src/core/node.ts';
import type { Image } from '../../src/image/image.ts';
import { CHUNK, COMMAND, COMMAND_FLAG } from '../../src/nbd/constants.ts';
import { createImage, openImage } from '../../src/node.ts';
import { NbdServer, type NbdServerOptions } from '../../src/server/server.ts';
import type { SessionEvent } from '../../src/server/session.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { NbdClient, until } from '../support/nbd-client.ts';
import { scratch } from '../support/scratch.ts';
import { everySeed, SEED_TIMEOUT } from '../support/seeds.ts';

const path = scratch();
const KiB = 1024;
const MiB = 1024 * KiB;
const { read, write, flush, trim, cache, writeZeroes, blockStatus, disconnect } = COMMAND;
const KINDS = ['simple', 'structured', 'extended'] as const;

const servers: NbdServer[] = [];
const events: SessionEvent[] = [];

function serve(image: Image, options: Partial<NbdServerOptions> = {}, readOnly = false): NbdServer {
  const server = new NbdServer({
    exports: [{ name: 'disk', image, readOnly }],
    onEvent: (event) => events.push(event),
    ...options,
  });
  servers.push(server);
  return server;
}

async function rawImage(store: BlockNode): Promise<Image> {
  return await openImage(store, { format: 'raw', readOnly: false });
}

async function qcow2Image(size: number, late?: number): Promise<Image> {
  const store = new MemoryStore();
  await createImage(store, { format: 'qcow2', size });
  const file = late === undefined ? store : new LateStore({ seed: late }, store);
  return await openImage(file, { format: 'qcow2', readOnly: false });
}

async function enter(server: NbdServer, kind: NbdClient['replies'], contexts?: readonly string[]): Promise<NbdClient> {
  const client = new NbdClient(server);
  await client.enter('disk', kind, contexts);
  return client;
}

afterEach(async () => {
  for (const server of servers.splice(0)) await server.close({ grace: 1 });
  events.length = 0;
});

describe.each(KINDS)('requests with %s replies', (kind) => {
  it('write, read, zero, trim, cache and flush', async () => {
    const image = await qcow2Image(4 * MiB);
    const client = await enter(serve(image), kind);
    const data = noise(seededRandom(1), 100_000);
    const ask = async (...args: Parameters<NbdClient['request']>): Promise<string> =>
      (await client.request(...args)).result;
    expect(await ask(write, 70_001, data.length, { data })).toBe('ok');
    expect((await client.request(read, 70_000, data.length + 2)).data).toEqual(new Uint8Array([0, ...data, 0]));
    expect(await ask(write, 0, 3, { data: data.subarray(0, 3), flags: COMMAND_FLAG.fua, piece: 7 })).toBe('ok');
    expect(await ask(writeZeroes, 80_000, 4096)).toBe('ok');
    expect(await ask(writeZeroes, 90_000, 4096, { flags: COMMAND_FLAG.noHole + COMMAND_FLAG.fua })).toBe('ok');
    data.fill(0, 80_000 - 70_001, 84_096 - 70_001);
    data.fill(0, 90_000 - 70_001, 94_096 - 70_001);
    expect(await image.read(70_001, data.length)).toEqual(data);
    expect(await ask(trim, 128 * KiB, 64 * KiB, { flags: COMMAND_FLAG.fua })).toBe('ok');
    expect(await image.read(128 * KiB, 4)).toEqual(new Uint8Array(4));
    expect(await ask(cache, 0, 3 * MiB)).toBe('ok');
    expect(await ask(flush, 0, 0)).toBe('ok');
    for (const command of [read, write, trim, cache, writeZeroes]) {
      expect(await ask(command, 4 * MiB, 0, command === write ? { data: new Uint8Array(0) } : {})).toBe('ok');
    }
    client.say(client.encode(disconnect, 0, 0).bytes);
    await client.session?.closed;
    expect(client.ending).toBe('end');
  });

  it('that cannot be are refused, each with its error, and their data is skipped', async () => {
    const client = await enter(serve(await rawImage(new MemoryStore({ size: MiB }))), kind);
    const ask = async (...args: Parameters<NbdClient['request']>): Promise<string> =>
      (await client.request(...args)).result;
    expect(await ask(read, MiB - 1, 2)).toBe('EINVAL');
    expect(await ask(read, 2 ** 52, 1)).toBe('EINVAL');
    expect(await ask(read, 0, 32 * MiB + 1)).toBe('EINVAL');
    expect(await ask(cache, 0, MiB + 1)).toBe('EINVAL');
    expect(await ask(trim, 1, MiB)).toBe('EINVAL');
    expect(await ask(writeZeroes, 1, MiB)).toBe('ENOSPC');
    expect(await ask(write, MiB - 1, 2, { data: new Uint8Array(2) })).toBe('ENOSPC');
    expect(await ask(write, MiB - 1, 70_000, { data: new Uint8Array(70_000), piece: 1000 })).toBe('ENOSPC');
    expect(await ask(write, 0, 1, { data: new Uint8Array(1), flags: COMMAND_FLAG.fastZero })).toBe('EINVAL');
    expect(await ask(read, 0, 1, { flags: COMMAND_FLAG.noHole })).toBe('EINVAL');
    expect(await ask(COMMAND.resize, 0, 1)).toBe('EINVAL');
    expect(await ask(99, 0, 1)).toBe('EINVAL');
    expect(await ask(blockStatus, 0, 512)).toBe('EINVAL');
    expect(await ask(read, 0, 1, { flags: COMMAND_FLAG.df })).toBe(kind === 'simple' ? 'EINVAL' : 'ok');
    if (kind === 'extended') {
      // Data where the command has none, and none where it has.
      expect(await ask(read, 0, 600, { data: new Uint8Array(600) })).toBe('EINVAL');
      expect(await ask(write, 0, 600)).toBe('EINVAL');
      expect(await ask(trim, 0, 2 ** 40)).toBe('EINVAL');
    }
    expect((await client.request(read, 0, 4)).data?.length).toBe(4);
  });

  it('that would change a disk that is read only are refused', async () => {
    const client = await enter(serve(await rawImage(new MemoryStore({ size: MiB })), {}, true), kind);
    expect((await client.request(write, 0, 4, { data: new Uint8Array(4) })).result).toBe('EPERM');
    expect((await client.request(trim, 0, 4)).result).toBe('EPERM');
    expect((await client.request(writeZeroes, 0, 4)).result).toBe('EPERM');
    expect((await client.request(flush, 0, 0)).result).toBe('ok');
  });

  it('that come together are answered in one send', async () => {
    const client = await enter(serve(await rawImage(new MemoryStore({ size: MiB }))), kind);
    const asked = Array.from({ length: 32 }, (_, i) => client.encode(read, i * 4096, 4096));
    const sends = client.sends;
    client.say(Buffer.concat(asked.map(({ bytes }) => bytes)));
    expect(client.sends).toBe(sends + 1);
    for (const { cookie } of asked) expect((await client.answer(cookie)).data).toEqual(new Uint8Array(4096));
  });

  it('keep to the model when eight clients send them at random, over stores that end late', {
    timeout: SEED_TIMEOUT,
  }, async () => {
    await everySeed(2, async (seed) => {
      const image = await qcow2Image(8 * MiB, seed);
      const server = serve(image);
      const model = new Uint8Array(8 * MiB);
      await Promise.all(
        Array.from({ length: 8 }, async (_, i) => {
          const contexts = kind === 'simple' ? undefined : ['base:allocation'];
          await wander(await enter(server, kind, contexts), model, i * MiB, seed * 100 + i);
        }),
      );
      expect(Buffer.compare(await image.read(0, 8 * MiB), model)).toBe(0);
      await server.close();
      await image.close();
    });
  });
});

/** Requests of one client on a range of its own, one after the other and against the model. */
async function wander(client: NbdClient, model: Uint8Array, start: number, seed: number): Promise<void> {
  const random = seededRandom(seed);
  for (let count = 0; count < 30; count++) {
    const offset = start + below(random, MiB);
    const length = 1 + below(random, Math.min(start + MiB - offset, random() < 0.3 ? MiB : 9000));
    const what = below(random, 8);
    if (what < 3) {
      const data = noise(random, length);
      expect((await client.request(write, offset, length, { data, piece: 1 + below(random, 100_000) })).result).toBe(
        'ok',
      );
      model.set(data, offset);
    } else if (what === 3) {
      expect((await client.request(writeZeroes, offset, length)).result).toBe('ok');
      model.fill(0, offset, offset + length);
    } else if (what === 4) {
      expect((await client.request(flush, 0, 0)).result).toBe('ok');
    } else if (what === 5 && client.replies !== 'simple') {
      const [extents] = (await client.request(blockStatus, offset, length)).status.values();
      let at = offset;
      for (const extent of extents ?? []) {
        const isZero = model.subarray(at, at + extent.length).every((byte) => byte === 0);
        if (extent.flags >= 2) expect(isZero).toBe(true);
        at += extent.length;
      }
      expect(at).toBeGreaterThan(offset);
      expect(at).toBeLessThanOrEqual(offset + length);
    } else {
      const { data } = await client.request(read, offset, length);
      expect(Buffer.compare(data as Uint8Array, model.subarray(offset, offset + length))).toBe(0);
    }
  }
}

describe('long reads with chunks', () => {
  it('tell of holes, unless the client wants one piece', async () => {
    const image = await qcow2Image(4 * MiB);
    const data = noise(seededRandom(2), 64 * KiB);
    await image.write(MiB, data);
    for (const kind of ['structured', 'extended'] as const) {
      const client = await enter(serve(image), kind);
      const expected = new Uint8Array(2 * MiB);
      expected.set(data, MiB - 1);
      const whole = await client.request(read, 1, 2 * MiB);
      expect(whole.chunks).toEqual([CHUNK.offsetHole, CHUNK.offsetData, CHUNK.offsetHole]);
      expect(Buffer.compare(whole.data as Uint8Array, expected)).toBe(0);
      const inOne = await client.request(read, 1, 2 * MiB, { flags: COMMAND_FLAG.df });
      expect(inOne.chunks).toEqual([CHUNK.offsetData]);
      expect(Buffer.compare(inOne.data as Uint8Array, expected)).toBe(0);
      expect((await client.request(read, 2 * MiB, MiB)).chunks).toEqual([CHUNK.offsetHole]);
      expect((await client.request(read, 2 * MiB, 4096)).chunks).toEqual([CHUNK.offsetData]);
    }
  });
});

describe('block status', () => {
  it('tells of data, zeros and layers, as much as is asked for', async () => {
    writeFileSync(path('base'), noise(seededRandom(3), 128 * KiB));
    truncateSync(path('base'), MiB);
    await createImage(path('top.qcow2'), {
      format: 'qcow2',
      size: MiB,
      backing: { name: path('base'), format: 'raw' },
    });
    const image = await openImage(path('top.qcow2'), { readOnly: false, references: 'allow' });
    await image.write(64 * KiB, noise(seededRandom(4), 64 * KiB));
    await image.writeZeroes(256 * KiB, 64 * KiB);
    const contexts = ['base:allocation', 'qemu:allocation-depth'];
    for (const kind of ['structured', 'extended'] as const) {
      const client = await enter(serve(image), kind, contexts);
      const { status, chunks } = await client.request(blockStatus, 0, 512 * KiB);
      expect(chunks.length).toBe(2);
      expect(status.get(1)?.slice(0, 2)).toEqual([
        { length: 64 * KiB, flags: 2 },
        { length: 64 * KiB, flags: 1 },
      ]);
      expect(status.get(0)?.[0]).toEqual({ length: 128 * KiB, flags: 0 });
      expect(status.get(0)?.reduce((sum, { length }) => sum + length, 0)).toBe(512 * KiB);
      const one = await client.request(blockStatus, 1000, 512 * KiB - 1000, { flags: COMMAND_FLAG.requestOne });
      expect(one.status.get(1)).toEqual([{ length: 64 * KiB - 1000, flags: 2 }]);
      expect((await client.request(blockStatus, 0, 0)).result).toBe('EINVAL');
    }
    await image.close();
    servers.length = 0;
  });

  it.each([true, false])('tells what dirty bitmaps mark, recording: %s', async (enabled) => {
    const image = await qcow2Image(4 * MiB);
    await image.addBitmap({ name: 'changes', granularity: 64 * KiB });
    await image.write(MiB + 5, new Uint8Array([1]));
    if (!enabled) await image.disableBitmap('changes');
    const client = new NbdClient(serve(image));
    const { contexts } = await client.enter('disk', 'structured', ['qemu:dirty-bitmap:changes']);
    const ask = async (): Promise<unknown> =>
      (await client.request(blockStatus, MiB, 3 * MiB)).status.get(contexts.get('qemu:dirty-bitmap:changes') as number);
    expect(await ask()).toEqual([
      { length: 64 * KiB, flags: 1 },
      { length: 3 * MiB - 64 * KiB, flags: 0 },
    ]);
    await client.request(write, 2 * MiB, 1, { data: new Uint8Array(1) });
    expect(((await ask()) as unknown[]).length).toBe(enabled ? 4 : 2);
  });
});

describe('a client', () => {
  it('that does not read is not listened to, and others are served', async () => {
    const server = serve(await rawImage(new MemoryStore({ size: 4 * MiB })), { maxInFlightBytes: 2 * MiB });
    const client = await enter(server, 'simple');
    client.stalled = true;
    const asked = Array.from({ length: 64 }, () => client.encode(read, 0, MiB));
    for (const { bytes } of asked) client.say(bytes);
    expect(client.paused).toBe(true);
    const other = await enter(server, 'extended');
    expect((await other.request(read, 0, MiB)).result).toBe('ok');
    client.goOn();
    for (const { cookie } of asked) expect((await client.answer(cookie)).data?.length).toBe(MiB);
    expect(client.paused).toBe(false);
  });

  it('that announces more data than there may be is left', async () => {
    const server = serve(await rawImage(new MemoryStore({ size: MiB })));
    for (const kind of KINDS) {
      const client = await enter(server, kind);
      client.say(client.encode(write, 0, 32 * MiB + 1, { flags: kind === 'extended' ? 32 : 0 }).bytes);
      await client.session?.closed;
      expect(client.ending).toBe('destroy');
    }
    expect(events.filter(({ type }) => type === 'fault').length).toBe(3);
  });

  it('whose data is larger than the bound is heard all the same', async () => {
    const server = serve(await rawImage(new MemoryStore({ size: 4 * MiB })), { maxInFlightBytes: 1 });
    const client = await enter(server, 'structured');
    const data = noise(seededRandom(5), 3 * MiB);
    expect((await client.request(write, 0, data.length, { data, piece: 60_000 })).result).toBe('ok');
    expect(Buffer.compare((await client.request(read, 0, data.length)).data as Uint8Array, data)).toBe(0);
  });

  it('that goes in the middle of things leaves nothing behind', async () => {
    const image = await qcow2Image(4 * MiB, 6);
    const server = serve(image);
    const client = await enter(server, 'structured');
    const data = noise(seededRandom(6), MiB);
    client.say(client.encode(write, 0, MiB, { data }).bytes);
    client.say(client.encode(read, 0, 4 * MiB).bytes);
    client.say(client.encode(write, 2 * MiB, MiB, { data }).bytes.subarray(0, 1000));
    await client.break();
    expect(server.connections).toBe(0);
    expect(Buffer.compare(await image.read(0, MiB), data)).toBe(0);
    expect(await image.read(2 * MiB, 4)).toEqual(new Uint8Array(4));
  });

  it('that ends its half still gets what it has asked for', async () => {
    const client = await enter(serve(await qcow2Image(MiB, 7)), 'simple');
    const { bytes, cookie } = client.encode(read, 0, MiB);
    client.say(bytes);
    client.session?.finish();
    expect((await client.answer(cookie)).data).toEqual(new Uint8Array(MiB));
    await client.session?.closed;
  });

  it('hears of failures of the image, and the server goes on', async () => {
    const image = await rawImage(new MemoryStore({ size: MiB }));
    const client = await enter(serve(image), 'structured');
    await image.node.close();
    expect((await client.request(read, 0, 4)).result).toBe('ESHUTDOWN');
    expect(events.find(({ type }) => type === 'failure')).toMatchObject({ name: 'disk', command: 'read' });
    servers.length = 0;
  });

  it('that sends noise harms itself alone', async () => {
    const server = serve(await rawImage(new MemoryStore({ size: MiB })));
    await everySeed(40, async (seed) => {
      const random = seededRandom(seed);
      const client = seed % 4 === 0 ? new NbdClient(server) : await enter(server, KINDS[seed % 3] as 'simple');
      for (let i = 0; i < 20; i++) {
        const { bytes } = client.encode(below(random, 9), below(random, 2 * MiB), below(random, 70_000), {
          flags: below(random, 40),
        });
        const changed = bytes.slice();
        if (random() < 0.5) changed[4 + below(random, bytes.length - 4)] = below(random, 256);
        if (random() < 0.05) changed[below(random, 4)] = 1;
        client.say(changed, 1 + below(random, 40));
      }
      await client.break();
    });
    expect(server.connections).toBe(0);
    expect((await (await enter(server, 'extended')).request(read, 0, 512)).result).toBe('ok');
  });
});

describe('a server that closes', () => {
  it('answers what runs, lets nobody in, and makes everything durable', async () => {
    const image = await qcow2Image(4 * MiB, 8);
    const server = serve(image);
    const client = await enter(server, 'structured');
    const data = noise(seededRandom(9), MiB);
    const { bytes, cookie } = client.encode(write, 0, MiB, { data });
    client.say(bytes);
    const closing = server.close();
    expect(new NbdClient(server).session).toBeUndefined();
    expect((await client.answer(cookie)).result).toBe('ok');
    await closing;
    expect(client.ending).toBe('end');
    expect(Buffer.compare(await image.read(0, MiB), data)).toBe(0);
  });

  it('cuts off those who do not read their last replies', async () => {
    const image = await rawImage(new MemoryStore({ size: MiB }));
    const server = serve(image);
    const client = await enter(server, 'simple');
    client.end = () => undefined;
    client.stalled = true;
    client.say(client.encode(read, 0, MiB).bytes);
    await server.close({ grace: 1 });
    expect(client.ending).toBe('destroy');
    await until(() => server.connections === 0, 'the end');
  });
});
