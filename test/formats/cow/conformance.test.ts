/** cow in its layouts against the contract of all formats, over a store that answers late as well. */
import { describe, it } from 'vitest';
import type { BlockNode } from '../../../src/core/node.ts';
import { CacheBudget } from '../../../src/core/table-cache.ts';
import { layoutOf } from '../../../src/formats/cow/layouts.ts';
import { type FormatSuiteOptions, formatConformance, type OpenBacking } from '../../../src/testing/format-suite.ts';
import { LateStore } from '../../../src/testing/late-store.ts';
import { type CreatableLayout, checkCow, newCow, openCow } from '../../support/cow-under-test.ts';

/** UML's layouts have a backing file in every case: one of zeros where the case has none. */
function creator(layout: CreatableLayout, wrap: (file: BlockNode) => BlockNode): FormatSuiteOptions['create'] {
  return async (size: number, backing: OpenBacking | undefined) => {
    const hasBacking = backing !== undefined || !layoutOf(layout).qemu;
    let file = await newCow(size, { layout, backing: hasBacking, pageSize: 65536 });
    await file.close();
    const open = async (readOnly: boolean): Promise<BlockNode> => {
      file = file.reopen({ readOnly });
      return (await openCow(wrap(file), { readOnly, backing: backing?.(), cache: new CacheBudget(0) })).node;
    };
    return {
      disk: await open(false),
      reopen: open,
      check: async () => {
        file = file.reopen({ readOnly: true });
        return (await checkCow(file, { backing: backing?.() })).result;
      },
    };
  };
}

function suite(layout: CreatableLayout, options: Partial<FormatSuiteOptions> & { readonly late?: boolean }): void {
  const { late = false, ...rest } = options;
  formatConformance({
    describe,
    it,
    name: `cow ${layout}${late ? ' over a late store' : ''}`,
    abilities: { backing: true, discard: 'zeroes' },
    unit: 512,
    create: creator(layout, (file) => (late ? new LateStore({ seed: 3, piecesPerTurn: 64 }, file) : file)),
    ...rest,
  });
}

suite('v3', { largeSize: 2 ** 41 });
suite('v3', { late: true, seed: 2 });
// Without the sectors that these have no bits for.
suite('v2-uml-32', { sizeAlign: 8 * 512 });
suite('v1-le32', { sizeAlign: 8 * 512, late: true });
suite('v1-be64', { sizeAlign: 64 * 512 });
suite('v2-qemu-x86_64', { largeSize: 2 ** 41 });
suite('v2-qemu-i386', { late: true, seed: 3 });
