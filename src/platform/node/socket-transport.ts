/** A socket of Node as the connection of a session: unix or TCP, whichever. Knows sessions by their shape only.
 *  Invariants: several parts are one `writev`; a part is given back when the kernel has it, or the socket is closed;
 *  the end of the other side's half is told apart from the end of the connection. */
import type { Socket } from 'node:net';

/** What takes in what comes. */
export interface SocketReceiver {
  receive(bytes: Uint8Array): void;
  /** The other side sends nothing more. */
  finish(): void;
  /** The connection is no more. */
  gone(): void;
}

/** The way out. */
export class SocketTransport {
  readonly #socket: Socket;

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  send(parts: readonly Uint8Array[], sent: () => void): void {
    const socket = this.#socket;
    const last = parts.length - 1;
    if (last > 0) socket.cork();
    parts.forEach((part, index) => {
      if (index === last) socket.write(part, () => sent());
      else socket.write(part);
    });
    if (last > 0) socket.uncork();
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  end(): void {
    this.#socket.end();
  }

  destroy(): void {
    this.#socket.destroy();
  }
}

/** Hands a connection to `accept` (of a server that allows half-open connections), and what comes in to the session that it makes. */
export function attachSocket(
  socket: Socket,
  accept: (transport: SocketTransport) => SocketReceiver | undefined,
): SocketReceiver | undefined {
  // A failure is followed by the end of the connection, which is all that matters of it here.
  socket.on('error', () => socket.destroy());
  socket.setNoDelay(true);
  const receiver = accept(new SocketTransport(socket));
  if (receiver === undefined) return undefined;
  socket.on('data', (bytes: Uint8Array) => receiver.receive(bytes));
  socket.on('end', () => receiver.finish());
  socket.on('close', () => receiver.gone());
  return receiver;
}
