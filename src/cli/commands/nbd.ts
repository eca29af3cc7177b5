/** `nbd serve`: images over sockets. Owns the sockets, the pid file, and the end.
 *  Invariants: nobody can connect before every image is open; the images are closed when no request runs any more, whatever ends it. */
import { rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer, isIPv6, type ListenOptions, type Server } from 'node:net';
import { basename } from 'node:path';
import { fromSystemError } from '../../base/errors.ts';
import type { SnapshotSelector } from '../../core/format.ts';
import type { Image } from '../../image/image.ts';
import { attachSocket } from '../../platform/node/socket-transport.ts';
import { NbdServer } from '../../server/server.ts';
import type { SessionEvent } from '../../server/session.ts';
import { usage } from '../args.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { openSource } from '../open.ts';
import { parseSnapshotParam, throwSnapshotFailure } from '../snapshot-param.ts';
import type { Command } from '../verbs/index.ts';
import { openChoices, type Scanned, scan, sourceOf } from './common.ts';

const DEFAULT_PORT = 10_809;
const DEFAULT_ADDRESS = '127.0.0.1';
const DEFAULT_SHARED = 100;
/** Milliseconds that clients have to take their last replies: fewer than the program waits when it is interrupted. */
const GRACE = 5000;

/** Where a server listens. */
type Place = { readonly path: string } | { readonly host: string; readonly port: number };

export const runNbd: Command = async (cli, args, spec) => {
  let snapshot: SnapshotSelector | undefined;
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key }, value }) => {
      if (key === 'snapshot') snapshot = parseSnapshotParam(value as string);
    },
  });
  const [what, ...operands] = given.operands;
  if (what !== 'serve') throw usage(`Expecting 'serve'${what === undefined ? '' : `, not '${what}'`}`);
  if (operands.length === 0) throw usage('Expecting one or more image file names');
  const places = placesOf(given);
  const maxConnections = numberOf(given, 'shared', 1, 65_535) ?? DEFAULT_SHARED;
  const names = exportNames(given, operands);
  const readOnly = given.has('read-only') || snapshot !== undefined;
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  const images: Image[] = [];
  try {
    for (const operand of operands) {
      const choices = { ...openChoices(given), snapshot, readOnly };
      const opening = openSource(cli, drivers, sourceOf(given, operand), choices);
      images.push(await opening.catch((error) => throwSnapshotFailure(error, cli.personality)));
    }
    const server = new NbdServer({
      exports: images.map((image, i) => ({
        name: names[i] as string,
        image,
        readOnly,
        // Bitmaps tell of the disk as it is now.
        bitmaps: snapshot === undefined,
      })),
      maxConnections,
      onEvent: (event) => report(cli, event),
    });
    await serve(cli, given, server, places, names);
  } finally {
    await closeAll(images);
    await drivers.codecs?.close();
  }
  return 0;
};

/** Closes every image; the first failure is told when all have been tried. */
async function closeAll(images: readonly Image[]): Promise<void> {
  const closed = await Promise.allSettled(images.map((image) => image.close()));
  for (const result of closed) if (result.status === 'rejected') throw result.reason;
}

/** @throws {@link Failure} */
function placesOf(given: Scanned): readonly Place[] {
  const path = given.value('socket');
  const port = numberOf(given, 'port', 0, 65_535);
  const host = given.value('bind');
  const places: Place[] = path === undefined ? [] : [{ path }];
  if (path === undefined || port !== undefined || host !== undefined) {
    places.push({ host: host ?? DEFAULT_ADDRESS, port: port ?? DEFAULT_PORT });
  }
  return places;
}

/** @throws {@link Failure} for what is no whole number between the bounds. */
function numberOf(given: Scanned, key: string, least: number, most: number): number | undefined {
  const text = given.value(key);
  if (text === undefined) return undefined;
  const value = /^\d{1,6}$/.test(text) ? Number(text) : -1;
  if (value >= least && value <= most) return value;
  throw new Failure(`--${key}: expected a number from ${least} to ${most}, not '${text}'`);
}

/** @throws {@link Failure} */
function exportNames(given: Scanned, operands: readonly string[]): readonly string[] {
  const names = given.all('export-name');
  if (names.length === operands.length) return names;
  if (names.length > 0) {
    throw new Failure(`--export-name: ${names.length} names are given for ${operands.length} images`);
  }
  return operands.length === 1 ? [''] : operands.map((operand) => basename(operand));
}

/** Listens until it is over.
 *  @throws {@link BlockError} for what cannot be listened on, and what the last flush throws. */
async function serve(
  cli: Cli,
  given: Scanned,
  server: NbdServer,
  places: readonly Place[],
  names: readonly string[],
): Promise<void> {
  const over = new Ending(cli.signal);
  const sockets = places.map(() => createServer({ allowHalfOpen: true }));
  const pidFile = given.value('pid-file');
  let hasPidFile = false;
  try {
    for (const socket of sockets) {
      socket.on('connection', (connection) => {
        attachSocket(connection, (transport) => {
          const session = server.accept(transport);
          void session?.closed.then(() => {
            if (server.connections === 0 && !given.has('persistent')) over.end();
          });
          return session;
        });
      });
    }
    for (const [i, place] of places.entries()) await listen(sockets[i] as Server, place);
    if (pidFile !== undefined) {
      writePidFile(pidFile);
      hasPidFile = true;
    }
    for (const [i, place] of places.entries()) {
      const base = addressOf(place, sockets[i] as Server);
      if (!given.has('quiet')) for (const name of names) cli.out.write(`${base(encodeURIComponent(name))}\n`);
    }
    await over.ended;
  } finally {
    // No new ones; a unix socket is removed from the directory.
    for (const socket of sockets) if (socket.listening) socket.close();
    if (hasPidFile) rmSync(pidFile as string, { force: true });
    await server.close({ grace: GRACE });
  }
}

/** That it is over: interrupted, or nobody is left. */
class Ending {
  readonly ended: Promise<void>;
  end: () => void = () => undefined;

  constructor(signal: AbortSignal) {
    this.ended = new Promise((resolve) => {
      this.end = resolve;
    });
    signal.addEventListener('abort', () => this.end());
    if (signal.aborted) this.end();
  }
}

async function listen(socket: Server, place: Place): Promise<void> {
  const options: ListenOptions = place;
  await new Promise<void>((resolve, reject) => {
    socket.once('error', (error) => {
      const where = 'path' in place ? `"${place.path}"` : `${place.host} port ${place.port}`;
      reject(fromSystemError(error, `could not listen on ${where}`));
    });
    socket.listen(options, resolve);
  });
}

function writePidFile(path: string): void {
  try {
    writeFileSync(path, `${process.pid}\n`);
  } catch (error) {
    throw fromSystemError(error, `could not write "${path}"`);
  }
}

/** @returns makes an address with the name of an export in it */
function addressOf(place: Place, socket: Server): (name: string) => string {
  if ('path' in place) return (name) => `nbd+unix:///${name}?socket=${place.path}`;
  const { port } = socket.address() as AddressInfo;
  const host = isIPv6(place.host) ? `[${place.host}]` : place.host;
  return (name) => `nbd://${host}:${port}/${name}`;
}

/** What people at the server ought to know. */
function report(cli: Cli, event: SessionEvent): void {
  if (event.type === 'export') return;
  const text = event.error instanceof Error ? event.error.message : String(event.error);
  cli.warn(event.type === 'fault' ? text : `export "${event.name}": ${event.command}: ${text}`);
}
