/** Compares the refcounts in the file with the references found, and corrects what may be corrected.
 *  Order and wording of the findings are QEMU's.
 *  Write order: any, because a count is only moved to the number of references that exist; the caller flushes before it relies on them. */
import type { StoredRefcounts } from './check-refcounts.ts';
import type { References } from './check-references.ts';
import type { CheckRun } from './check-run.ts';

export interface Comparison {
  /** Highest cluster that is referenced or has a refcount; 0 when there is none. */
  readonly highest: number;
  /** A referenced cluster (or one that should be free) has no refcount block to correct it in: build anew. */
  readonly rebuild: boolean;
}

export interface Corrections {
  readonly leaks: boolean;
  readonly errors: boolean;
}

/** Compares what is stored with what is referenced, and corrects it as far as allowed. */
export async function compareRefcounts(
  run: CheckRun,
  references: References,
  stored: StoredRefcounts,
  fix: Corrections,
): Promise<Comparison> {
  const { refcountBlockEntries } = run.geometry;
  const { clusters } = references;
  let highest = 0;
  let rebuild = false;
  for (let first = 0; first < clusters; first += refcountBlockEntries) {
    const end = Math.min(clusters, first + refcountBlockEntries);
    const found = references.counts;
    const counts = stored.counts;
    let changed = false;
    const readable = stored.isReadable(first);
    for (let cluster = first; cluster < end; cluster++) {
      const reference = found[cluster] as number;
      if (!readable) {
        run.obstacle('refcount-unknown', `Can't get refcount for cluster ${cluster}: Input/output error`, { cluster });
        continue;
      }
      const refcount = cluster < stored.clusters ? (counts[cluster] as number) : 0;
      if (refcount > 0 || reference > 0) highest = cluster;
      if (refcount === reference) continue;
      if (refcount === 0) rebuild = true;
      const text = Number.isFinite(refcount) ? String(refcount) : await stored.exact(cluster);
      if (judge(run, cluster, refcount, text, reference, fix)) {
        counts[cluster] = reference;
        changed = true;
      }
    }
    if (changed) await stored.write(first / refcountBlockEntries);
    if (run.restDue) await run.rest();
  }
  return { highest, rebuild };
}

/** Tells one difference.
 *  @returns true when it is to be corrected (and is counted so). */
function judge(
  run: CheckRun,
  cluster: number,
  refcount: number,
  text: string,
  reference: number,
  fix: Corrections,
): boolean {
  const leak = refcount > reference;
  const corrects = refcount !== 0 && (leak ? fix.leaks : fix.errors);
  const verb = corrects ? 'Repairing' : leak ? 'Leaked' : 'ERROR';
  const { counts } = run;
  if (corrects) {
    if (leak) counts.leaksFixed++;
    else counts.corruptionsFixed++;
  } else if (leak) counts.leaks++;
  else counts.corruptions++;
  run.find(
    leak ? 'leak' : 'corruption',
    leak ? 'leaked-cluster' : 'refcount-low',
    `${verb} cluster ${cluster} refcount=${text} reference=${reference}`,
    { cluster, refcount, references: reference },
  );
  return corrects;
}
