/** Check and repair of an image that is open: keeps the node's caches and the file in step around `checkImageTables`, and repairs an
 *  image that was not closed cleanly. Spec: qcow2, "Header" (dirty bit).
 *  Invariant: while a check runs no request does; after a repair nothing that was read before is used. */
import { BlockError, isBlockError } from '../../base/errors.ts';
import type { CheckFacet, CheckFinding, CheckOptions, CheckResult } from '../../core/format.ts';
import { checkImageTables } from './check.ts';
import { readHeader } from './header.ts';
import type { Qcow2State } from './image-state.ts';

/** What a checker needs of the open image. */
export interface CheckedNode {
  readonly state: Qcow2State;
  /** Writes everything back. */
  flush(): Promise<void>;
  /** Forgets everything that was read. */
  forget(): Promise<void>;
}

export class Qcow2Checker implements CheckFacet {
  readonly #node: CheckedNode;

  constructor(node: CheckedNode) {
    this.#node = node;
  }

  async check(options: CheckOptions): Promise<CheckResult> {
    const { state } = this.#node;
    const run = async (): Promise<CheckResult> => {
      if (!state.readOnly) await this.#node.flush();
      try {
        return await checkImageTables({ file: state.file, header: state.header, name: state.name }, options);
      } finally {
        if (!state.readOnly && options.fix !== undefined && options.fix !== 'none') {
          await reloadHeader(state);
          await this.#node.forget();
        }
      }
    };
    return state.engine === undefined ? await run() : await state.engine.exclusive(run);
  }
}

async function reloadHeader(state: Qcow2State): Promise<void> {
  state.header = await readHeader(state.file, state.name, { readOnly: true, forCheck: true });
}

/** Before the first write to an image whose refcounts may be stale: rebuilds what is wrong, and marks it clean.
 *  @throws {@link BlockError} CORRUPT, reason `qcow2.dirty-repair`, when something wrong remains; the cause says what. */
export async function repairDirty(state: Qcow2State): Promise<void> {
  const failed = (cause: unknown, left: string): BlockError =>
    new BlockError(
      'CORRUPT',
      `qcow2 "${state.name}": was not closed cleanly and could not be repaired: ${left}; check it`,
      {
        reason: 'qcow2.dirty-repair',
        cause,
      },
    );
  let result: CheckResult;
  let broken = false;
  const onFinding = ({ reason }: CheckFinding): void => {
    broken ||= reason === 'qcow2.rebuild-failed';
  };
  try {
    const input = { file: state.file, header: state.header, name: state.name, gentle: true };
    result = await checkImageTables(input, { fix: 'all', onFinding });
  } catch (error) {
    throw failed(error, isBlockError(error) ? error.message : String(error));
  }
  if (result.corruptions > 0 || result.checkErrors > 0) {
    throw failed(undefined, `${result.corruptions} corruptions and ${result.checkErrors} internal errors are left`);
  }
  // as in QEMU the counters do not tell
  if (broken) throw failed(undefined, 'the rebuilt refcounts are wrong');
  await reloadHeader(state);
  state.resetCaches();
  const { corruptionsFixed, leaksFixed } = result;
  state.repaired(`was not closed cleanly: ${corruptionsFixed} corruptions and ${leaksFixed} leaked clusters repaired`);
}
