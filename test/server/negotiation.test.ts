import { afterEach, describe, expect, it } from 'vitest';
import { EXPORT_FLAG, HANDSHAKE_FLAG, INFO, OPTION, REPLY } from '../../src/nbd/constants.ts';
import { encodeClientFlags, encodeOption } from '../../src/nbd/handshake.ts';
import {
  decodeErrorText,
  decodeListed,
  encodeInfoRequest,
  encodeMetaContextRequest,
} from '../../src/nbd/option-data.ts';
import { openImage } from '../../src/node.ts';
import { NbdServer, type NbdServerOptions } from '../../src/server/server.ts';
import type { SessionEvent } from '../../src/server/session.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { NbdClient, until } from '../support/nbd-client.ts';

const SIZE = 1024 * 1024;
const servers: NbdServer[] = [];
const events: SessionEvent[] = [];

async function serve(options: Partial<NbdServerOptions> = {}): Promise<NbdServer> {
  const disk = async (name: string) =>
    await openImage(new MemoryStore({ size: SIZE, name }), { format: 'raw', readOnly: false });
  const server = new NbdServer({
    exports: [
      { name: 'first', image: await disk('a'), description: 'what it is' },
      { name: 'second', image: await disk('b'), readOnly: true },
    ],
    onEvent: (event) => events.push(event),
    ...options,
  });
  servers.push(server);
  return server;
}

function faults(): readonly unknown[] {
  return events.flatMap((event) => (event.type === 'fault' ? [(event.error as { reason?: string }).reason] : []));
}

afterEach(async () => {
  for (const server of servers.splice(0)) await server.close({ grace: 1 });
  events.length = 0;
});

describe('the handshake', () => {
  it('lists what there is, and tells of each', async () => {
    const client = new NbdClient(await serve());
    expect(await client.greet()).toBe(HANDSHAKE_FLAG.fixedNewstyle + HANDSHAKE_FLAG.noZeroes);
    const listed = await client.option(OPTION.list);
    expect(listed.slice(0, -1).map(({ data }) => decodeListed(data))).toEqual([
      { name: 'first', details: 'what it is' },
      { name: 'second', details: '' },
    ]);
    const all = [INFO.name, INFO.description, INFO.blockSize];
    expect(await client.info(OPTION.info, 'first', all)).toEqual([
      { type: 'export', size: SIZE, flags: 0xd6d },
      { type: 'name', text: 'first' },
      { type: 'description', text: 'what it is' },
      { type: 'block-size', minimum: 1, preferred: 4096, maximum: 33_554_432 },
    ]);
    expect(await client.info(OPTION.info, '', [INFO.name])).toContainEqual({ type: 'name', text: 'first' });
    await client.option(OPTION.structuredReply);
    // What qemu-nbd says of a disk that is shared and read only.
    expect(await client.info(OPTION.info, 'second', all.slice(1))).toContainEqual({
      type: 'export',
      size: SIZE,
      flags: 0x58f,
    });
  });

  it('takes options in pieces of any length', async () => {
    const client = new NbdClient(await serve());
    await client.greet();
    for (const piece of [1, 3, 15]) {
      const replies = await client.option(OPTION.info, encodeInfoRequest({ name: 'second', wanted: [] }), piece);
      expect(replies.map(({ type }) => type)).toEqual([REPLY.info, REPLY.ack]);
    }
  });

  it('answers options that came in one go, in their order', async () => {
    const client = new NbdClient(await serve());
    await client.greet();
    const sends = client.sends;
    client.say(
      new Uint8Array([...encodeOption(OPTION.structuredReply), ...encodeOption(77), ...encodeOption(OPTION.list)]),
    );
    expect(client.sends).toBe(sends + 1);
    expect((await client.optionReplies(OPTION.structuredReply)).at(-1)?.type).toBe(REPLY.ack);
    expect((await client.optionReplies(77)).at(-1)?.type).toBe(REPLY.unsupported);
    expect((await client.optionReplies(OPTION.list)).length).toBe(3);
  });

  it('refuses what cannot be, and goes on', async () => {
    const client = new NbdClient(await serve());
    await client.greet();
    const refused = async (option: number, data?: Uint8Array): Promise<number | undefined> =>
      (await client.option(option, data)).at(-1)?.type;
    expect(await refused(OPTION.startTls)).toBe(REPLY.unsupported);
    expect(await refused(OPTION.info, encodeInfoRequest({ name: 'third', wanted: [] }))).toBe(REPLY.unknown);
    expect(await refused(OPTION.go, new Uint8Array([0, 0, 0, 9, 1]))).toBe(REPLY.invalid);
    expect(await refused(OPTION.list, new Uint8Array(1))).toBe(REPLY.invalid);
    const contexts = encodeMetaContextRequest({ name: 'first', queries: ['base:allocation'] });
    expect(await refused(OPTION.setMetaContext, contexts)).toBe(REPLY.invalid);
    expect(await refused(OPTION.structuredReply, new Uint8Array(1))).toBe(REPLY.invalid);
    expect(await refused(OPTION.structuredReply)).toBe(REPLY.ack);
    expect(await refused(OPTION.structuredReply)).toBe(REPLY.invalid);
    expect(await refused(OPTION.extendedHeaders)).toBe(REPLY.ack);
    expect(await refused(OPTION.extendedHeaders)).toBe(REPLY.invalid);
    expect(await refused(OPTION.structuredReply)).toBe(REPLY.extendedHeadersRequired);
    const nowhere = encodeMetaContextRequest({ name: 'third', queries: [] });
    expect(await refused(OPTION.listMetaContext, nowhere)).toBe(REPLY.unknown);
    const [words] = await client.option(99);
    expect(decodeErrorText(words?.data ?? new Uint8Array(0))).toContain('99');
    expect(await refused(OPTION.go, encodeInfoRequest({ name: 'first', wanted: [] }))).toBe(REPLY.ack);
    expect(client.session?.exportName).toBe('first');
  });

  it('drops the data of an option that is too long, and answers it', async () => {
    const client = new NbdClient(await serve());
    await client.greet();
    client.say(encodeOption(OPTION.info, new Uint8Array(70_000)), 9999);
    expect((await client.optionReplies(OPTION.info)).at(-1)?.type).toBe(REPLY.tooBig);
    expect((await client.option(OPTION.list)).at(-1)?.type).toBe(REPLY.ack);
  });

  it('lists contexts by name, by namespace or all, and sets those that are named exactly', async () => {
    const client = new NbdClient(await serve());
    await client.greet();
    await client.option(OPTION.structuredReply);
    const listed = async (...queries: string[]): Promise<readonly string[]> => [
      ...(await client.contexts(OPTION.listMetaContext, 'first', queries)).keys(),
    ];
    const both = ['base:allocation', 'qemu:allocation-depth'];
    expect(await listed()).toEqual(both);
    expect(await listed('base:')).toEqual(['base:allocation']);
    expect(await listed('qemu:')).toEqual(['qemu:allocation-depth']);
    expect(await listed('qemu:dirty-bitmap:', 'other:')).toEqual([]);
    const set = async (...queries: string[]): Promise<unknown> => [
      ...(await client.contexts(OPTION.setMetaContext, 'first', queries)),
    ];
    expect(await set('base:', 'qemu:allocation-depth', 'other:x')).toEqual([['qemu:allocation-depth', 1]]);
    expect(await set(...both, 'base:allocation')).toEqual([
      ['base:allocation', 0],
      ['qemu:allocation-depth', 1],
    ]);
  });

  it('forgets contexts of one export when another is taken', async () => {
    const client = new NbdClient(await serve());
    await client.greet();
    await client.option(OPTION.structuredReply);
    await client.contexts(OPTION.setMetaContext, 'first', ['base:allocation']);
    await client.info(OPTION.go, 'second');
    client.replies = 'structured';
    expect((await client.request(7, 0, 512)).result).toBe('EINVAL');
  });

  it.each([
    ['with zeros', 1, 134],
    ['without', 3, 10],
  ])('begins by the old option of the name alone, %s', async (_, flags, length) => {
    const client = new NbdClient(await serve());
    await client.greet(flags);
    client.say(encodeOption(OPTION.exportName, Buffer.from('second')));
    const bytes = await client.take(length);
    expect(Number(bytes.readBigUInt64BE(0))).toBe(SIZE);
    expect(bytes.readUInt16BE(8)).toBe(0x58f - EXPORT_FLAG.df);
    expect((await client.request(0, 0, 16)).data).toEqual(Buffer.alloc(16));
  });

  it('ends when the client wants it, with an answer', async () => {
    const client = new NbdClient(await serve());
    await client.greet();
    expect((await client.option(OPTION.abort)).at(-1)?.type).toBe(REPLY.ack);
    await client.session?.closed;
    expect(client.ending).toBe('end');
  });
});

describe('a client that breaks the handshake', () => {
  it.each([
    ['flags of no meaning', [encodeClientFlags(4)], 'nbd.client-flags'],
    ['another beginning than that of an option', [encodeClientFlags(3), new Uint8Array(16)], 'nbd.option-magic'],
    ['an option of 33 MiB', [encodeClientFlags(3), hugeOption(OPTION.list, 33 * SIZE)], 'nbd.option-length'],
    ['an endless name', [encodeClientFlags(3), hugeOption(OPTION.exportName, SIZE)], 'nbd.option-length'],
    ['options without saying that it may', [encodeClientFlags(0), encodeOption(OPTION.list)], 'nbd.option-newstyle'],
    [
      'the name of no export',
      [encodeClientFlags(3), encodeOption(OPTION.exportName, Buffer.from('x'))],
      'nbd.unknown-export',
    ],
  ])('by %s is left, and others are not', async (_, said, reason) => {
    const server = await serve();
    const other = new NbdClient(server);
    const client = new NbdClient(server);
    for (const bytes of said) client.say(bytes);
    await client.session?.closed;
    expect(client.ending).toBe('destroy');
    expect(faults()).toEqual([reason]);
    expect(server.connections).toBe(1);
    expect((await other.enter('first')).size).toBe(SIZE);
  });

  it('by saying nothing is left when its time is over', async () => {
    const server = await serve({ handshakeLimit: 1 });
    const client = new NbdClient(server);
    await client.session?.closed;
    expect(faults()).toEqual(['nbd.handshake-limit']);
    expect(client.ending).toBe('destroy');
  });

  it('by asking and never reading is not listened to', async () => {
    const client = new NbdClient(await serve());
    await client.greet();
    client.stalled = true;
    const lists = Buffer.concat(Array.from({ length: 1000 }, () => encodeOption(OPTION.list)));
    for (let i = 0; i < 60 && !client.paused; i++) {
      client.say(lists);
      await until(() => true, 'a turn');
    }
    expect(client.paused).toBe(true);
    client.goOn();
    await until(() => !client.paused, 'being listened to again');
  });

  it('past the limit of connections is not let in until another goes', async () => {
    const server = await serve({ maxConnections: 2 });
    const clients = [new NbdClient(server), new NbdClient(server)];
    expect(new NbdClient(server)).toMatchObject({ ending: 'destroy', session: undefined });
    await clients[0]?.break();
    expect((await new NbdClient(server).enter('first')).size).toBe(SIZE);
  });
});

describe('exports', () => {
  it('have names of their own, not too long, and there is one', async () => {
    const image = await openImage(new MemoryStore({ size: 512 }), { format: 'raw' });
    const make = (...names: string[]) => new NbdServer({ exports: names.map((name) => ({ name, image })) });
    expect(() => make()).toThrow(expect.objectContaining({ reason: 'nbd.no-export' }));
    expect(() => make('a', 'a')).toThrow(expect.objectContaining({ reason: 'nbd.export-twice' }));
    expect(() => make('ö'.repeat(2049))).toThrow(expect.objectContaining({ reason: 'nbd.export-text' }));
    expect(make('ö'.repeat(2048)).connections).toBe(0);
  });
});

function hugeOption(option: number, length: number): Uint8Array {
  const bytes = encodeOption(option);
  new DataView(bytes.buffer).setUint32(12, length);
  return bytes;
}
