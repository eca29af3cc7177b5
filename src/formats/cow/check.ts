/** Check and repair of cow images: the bitmap against the disk and the file's length, the backing file against what the header records.
 *  Spec: "File length, past the end", "mtime and size checks".
 *  Repaired (fix `all`): bits behind the disk are cleared; a file that ends before its last sector is made longer (readers of the time saw zeros
 *  there); with ignore-mismatch the base's present time is recorded. A base of another size never is.
 *  Invariant: guest data is never written. */
import { hex } from '../../base/errors.ts';
import { Pacer, throwIfAborted } from '../../base/job.ts';
import { lowBits } from '../../bytes/bits.ts';
import type { CheckFacet, CheckFinding, CheckOptions, CheckResult } from '../../core/format.ts';
import type { BlockNode } from '../../core/node.ts';
import type { PresenceMap } from '../../core/presence-map.ts';
import { RunList } from '../../core/run.ts';
import { type BackingFacts, mismatches, sizeDiffers } from './backing-facts.ts';
import type { CowDetection } from './detect.ts';

export interface CheckedCow {
  readonly file: BlockNode;
  readonly name: string;
  readonly readOnly: boolean;
  readonly ignoreMismatch: boolean;
  readonly detection: CowDetection;
  readonly map: PresenceMap;
  facts(): BackingFacts;
  backingName(): string | undefined;
  /** Records the base's present time. */
  refreshBacking(): Promise<void>;
  exclusive<T>(body: () => Promise<T>): Promise<T>;
}

interface Allocation {
  /** Sectors. */
  readonly present: number;
  /** Where the data of the last present sector ends in the file, bytes; 0 when there is none. */
  readonly dataEnd: number;
}

export class CowChecker implements CheckFacet {
  readonly #image: CheckedCow;

  constructor(image: CheckedCow) {
    this.#image = image;
  }

  check(options: CheckOptions): Promise<CheckResult> {
    return this.#image.exclusive(() => this.#check(options));
  }

  async #check(options: CheckOptions): Promise<CheckResult> {
    const { file, map, detection, readOnly } = this.#image;
    if (!readOnly) await map.flush();
    const run = new Run(options);
    const allocation = await this.#allocation(options);
    await this.#strayBits(run);
    await this.#length(run, allocation.dataEnd);
    await this.#backing(run);
    return {
      checkErrors: 0,
      corruptions: run.left,
      leaks: 0,
      corruptionsFixed: run.fixed,
      leaksFixed: 0,
      imageEndOffset: file.size,
      totalClusters: detection.geometry.sectors,
      allocatedClusters: allocation.present,
      fragmentedClusters: 0,
      compressedClusters: 0,
    };
  }

  async #allocation({ signal, onProgress }: CheckOptions): Promise<Allocation> {
    const { map } = this.#image;
    const { virtualSize, unit } = map.geometry;
    const runs = new RunList(256);
    const pacer = new Pacer();
    let present = 0;
    let dataEnd = 0;
    for (let at = 0; at < virtualSize; at = runs.guestEnd) {
      throwIfAborted(signal);
      runs.reset(at, virtualSize);
      await map.map(at, virtualSize - at, runs);
      for (let i = 0; i < runs.count; i++) {
        const { kind, length, hostOffset } = runs.at(i);
        if (kind !== 'data') continue;
        present += Math.ceil(length / unit);
        dataEnd = hostOffset + length;
      }
      onProgress?.({ phase: 'check', done: runs.guestEnd, total: virtualSize });
      if (pacer.due) await pacer.pause(signal);
    }
    return { present, dataEnd };
  }

  /** The last byte of the bitmap may have bits that no sector has. */
  async #strayBits(run: Run): Promise<void> {
    const { file, map, detection } = this.#image;
    const { bitmapOffset, bitmapLength, sectors } = detection.geometry;
    if (map.geometry.wordBytes > 1 || bitmapLength === 0 || sectors >= bitmapLength * 8) return;
    const last = new Uint8Array(1);
    const at = bitmapOffset + bitmapLength - 1;
    await file.read(at, last);
    const kept = lowBits(last[0] as number, sectors - (bitmapLength - 1) * 8);
    if (kept === last[0]) return;
    await run.found(
      'cow.stray-bits',
      `the bitmap marks sectors behind the disk, in its last byte at ${hex(at)}`,
      async () => {
        last[0] = kept;
        await file.write(at, last);
        await file.flush();
        // What the cache holds of that byte must not come back.
        await map.reshape(map.geometry);
      },
    );
  }

  async #length(run: Run, dataEnd: number): Promise<void> {
    const { file, detection } = this.#image;
    const { dataOffset, sectors } = detection.geometry;
    if (dataEnd > file.size) {
      const text = `the file ends at ${hex(file.size)}, before the last sector that it holds ends at ${hex(dataEnd)}`;
      const grow = async (): Promise<void> => {
        await file.truncate(dataEnd);
        await file.flush();
      };
      await run.found('cow.short', text, file.supports.truncate ? grow : undefined);
    }
    const end = dataOffset + sectors * detection.header.sectorSize;
    if (file.size > end)
      run.note('cow.long', `${file.size - end} bytes behind the disk's data, which ends at ${hex(end)}`);
  }

  async #backing(run: Run): Promise<void> {
    const { ignoreMismatch } = this.#image;
    const name = this.#image.backingName();
    if (name === undefined) return;
    const facts = this.#image.facts();
    if (facts.size === undefined && facts.mtime === undefined) {
      run.note('cow.backing-unseen', `backing file "${name}" is not there or was not looked at`);
      return;
    }
    const found = mismatches(facts);
    if (found.length === 0) return;
    const repair = ignoreMismatch && !sizeDiffers(facts) ? () => this.#image.refreshBacking() : undefined;
    await run.found(
      'cow.mismatch',
      `backing file "${facts.file ?? name}" is not as recorded: ${found.join('; ')}`,
      repair,
    );
  }
}

/** Counts and tells. */
class Run {
  readonly #options: CheckOptions;
  left = 0;
  fixed = 0;

  constructor(options: CheckOptions) {
    this.#options = options;
  }

  note(reason: string, message: string): void {
    this.#options.onFinding?.({ kind: 'note', reason, message });
  }

  /** @param repair `undefined`: beyond repair. */
  async found(reason: string, message: string, repair: (() => Promise<void>) | undefined): Promise<void> {
    const fix = this.#options.fix === 'all' && repair !== undefined;
    const finding: CheckFinding = {
      kind: 'corruption',
      reason,
      message: `${fix ? 'Repairing' : 'ERROR'} ${message}`,
    };
    this.#options.onFinding?.(finding);
    if (!fix) {
      this.left++;
      return;
    }
    await repair();
    this.fixed++;
  }
}
