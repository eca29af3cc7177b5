/** What a session needs of a connection: bytes in, bytes out, and a say in how fast. Types only; sockets, pipes and tests implement it. */

/** The way out, and the brake on the way in. What comes in is handed to `receive` and `end` of the session. */
export interface Transport {
  /** Sends the parts in order. They are the session's again when `sent` is called: once, after this has returned, also when the connection
   *  is gone by then. */
  send(parts: readonly Uint8Array[], sent: () => void): void;
  /** Nothing more is to be handed in until `resume`; what is on its way already may still come. */
  pause(): void;
  resume(): void;
  /** Ends the connection when everything has been sent. */
  end(): void;
  /** Ends it at once. */
  destroy(): void;
}
