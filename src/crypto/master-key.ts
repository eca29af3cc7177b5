/** An unlocked master key, held by whoever unlocked it and wiped by them. */

export class MasterKey {
  /** Zeros after {@link wipe}. */
  readonly bytes: Uint8Array;
  /** The slot that the passphrase opened. */
  readonly slot: number;
  /** The digest in the header of the volume that it belongs to. */
  readonly digest: Uint8Array;
  #wiped = false;

  /** @param bytes taken over, not copied */
  constructor(bytes: Uint8Array, slot: number, digest: Uint8Array) {
    this.bytes = bytes;
    this.slot = slot;
    this.digest = digest;
  }

  /** Whether it is the key of the volume with that digest, and still there. */
  opens(digest: Uint8Array): boolean {
    return !this.#wiped && this.digest.every((byte, i) => byte === digest[i]);
  }

  wipe(): void {
    this.#wiped = true;
    this.bytes.fill(0);
  }
}
