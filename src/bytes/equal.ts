/** Whether bytes are the same, by the runtime's own comparison where it has one. Pure. */

const memcmp: typeof Buffer.prototype.compare | undefined = globalThis.Buffer?.prototype.compare;

/** Whether `[start, end)` of both is the same. */
export function areEqual(a: Uint8Array, b: Uint8Array, start: number, end: number): boolean {
  if (memcmp !== undefined) return memcmp.call(a, b, start, end, start, end) === 0;
  for (let i = start; i < end; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Index of the first byte in which two arrays of one length differ; -1 where they are the same. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  if (areEqual(a, b, 0, a.length)) return -1;
  let [start, end] = [0, a.length];
  while (end - start > 1) {
    const middle = start + Math.ceil((end - start) / 2);
    if (areEqual(a, b, start, middle)) start = middle;
    else end = middle;
  }
  return start;
}
