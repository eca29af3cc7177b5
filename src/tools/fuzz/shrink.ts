/** Makes a failing set smaller, by leaving things out (delta debugging). Pure.
 *  Invariant: what is returned has failed when it was last tried, and so has nothing smaller by one of it, unless the tries ran out. */

export interface Shrunk<T> {
  readonly items: readonly T[];
  /** How often it was tried. */
  readonly tries: number;
}

/** @param items what fails, all together
 *  @param fails whether these alone fail as well; their order is that of `items`
 *  @param most tries */
export async function shrink<T>(
  items: readonly T[],
  fails: (some: readonly T[]) => Promise<boolean>,
  most = 200,
): Promise<Shrunk<T>> {
  let left = items;
  let tries = 0;
  for (let parts = 2; left.length > 1 && tries < most; ) {
    const size = Math.ceil(left.length / parts);
    let smaller: readonly T[] | undefined;
    for (let from = 0; from < left.length && tries < most && smaller === undefined; from += size) {
      for (const some of candidates(left, from, size, parts)) {
        if (tries === most) break;
        tries++;
        if (!(await fails(some))) continue;
        smaller = some;
        break;
      }
    }
    if (smaller !== undefined) {
      parts = smaller.length <= size ? 2 : Math.max(2, parts - 1);
      left = smaller;
    } else if (size === 1) break;
    else parts = Math.min(left.length, parts * 2);
  }
  return { items: left, tries };
}

/** One part alone, and all but it; of two parts these are the same. */
function candidates<T>(left: readonly T[], from: number, size: number, parts: number): (readonly T[])[] {
  const part = left.slice(from, from + size);
  if (parts === 2) return [part];
  return [part, [...left.slice(0, from), ...left.slice(from + size)]];
}
