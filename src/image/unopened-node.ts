/** Stands for a file that an image names and that was not opened. Owns nothing; every request for its content fails.
 *  Invariant: nothing is ever read as zero because a file was left unopened. */

import type { Pending } from '../base/async.ts';
import type { BlockError } from '../base/errors.ts';
import { BaseStore, DEFAULT_LIMITS, type StoreSupports } from '../core/store.ts';

export class UnopenedNode extends BaseStore {
  /** Unknown, hence as large as anything can be: a reader must not take its end for zeros. */
  readonly size = Number.MAX_SAFE_INTEGER;
  readonly limits = DEFAULT_LIMITS;
  readonly supports: StoreSupports = {
    write: false,
    truncate: false,
    writeZeroes: 'no',
    discard: false,
    extents: true,
    fua: false,
    sync: true,
    access: 'random',
  };
  readonly #denied: () => BlockError;

  /** @param denied makes the error that requests fail with. */
  constructor(name: string, denied: () => BlockError) {
    super(name, 'unopened');
    this.#denied = denied;
  }

  protected _read(): Pending {
    throw this.#denied();
  }
  protected _write(): Pending {
    throw this.#denied();
  }
  protected _writeZeroes(): Pending {
    throw this.#denied();
  }
  protected _discard(): Pending {
    throw this.#denied();
  }
  protected _extents(): Pending {
    throw this.#denied();
  }
  protected _flush(): Pending {
    return undefined;
  }
  protected _truncate(): Pending {
    throw this.#denied();
  }
  protected async _close(): Promise<void> {}
}

/** Whether the content of `node` is out of reach. */
export function isUnopened(node: { readonly driver: string }): boolean {
  return node.driver === 'unopened';
}
