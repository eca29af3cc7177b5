/** Tells listeners what happens to an image. No I/O, no printing. */
import type { ImageEvent } from '../core/format.ts';

type Listener = (event: ImageEvent) => void;

export class EventHub {
  readonly #listeners = new Map<string, Set<Listener>>();

  /** @returns stops it. */
  on(type: string, listener: Listener): () => void {
    // One entry per registration: the same function may be registered twice and stopped once.
    const entry: Listener = (event) => listener(event);
    const set = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, set);
    set.add(entry);
    return () => void set.delete(entry);
  }

  emit(event: ImageEvent): void {
    for (const type of [event.type, '*']) {
      for (const listener of [...(this.#listeners.get(type) ?? [])]) listener(event);
    }
  }
}
