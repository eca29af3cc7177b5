/** Choosing a format by the first bytes. */
import { describe, expect, it } from 'vitest';
import type { FormatDriver, ProbeInput } from '../../src/core/format.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { probeBytes, probeFormat } from '../../src/image/probe.ts';
import { MemoryStore } from '../../src/storage/memory.ts';

function format(name: string, probe: (input: ProbeInput) => number): FormatDriver {
  return { ...(raw as FormatDriver), name, probe };
}
const input: ProbeInput = { head: new Uint8Array(512), fileSize: 512, name: 'a' };

describe('probing', () => {
  it('takes the highest score; of equal ones the first of the list', () => {
    const formats = [raw, format('x', () => 50), format('y', () => 90), format('z', () => 90)];
    expect(probeBytes(input, formats)).toMatchObject({ driver: { name: 'y' }, guessed: false });
    expect(probeBytes(input, [...formats].reverse())).toMatchObject({ driver: { name: 'z' }, guessed: false });
  });

  it('takes what matches everything only when nothing else matches, and calls it a guess', () => {
    expect(probeBytes(input, [raw, format('x', () => 2)])).toMatchObject({ driver: { name: 'x' }, guessed: false });
    expect(probeBytes(input, [format('x', () => 0), raw])).toMatchObject({ driver: { name: 'raw' }, guessed: true });
    expect(probeBytes(input, [format('x', () => 0)])).toBeUndefined();
  });

  it.each([
    [0, 0],
    [100, 100],
    [2048, 2048],
    [1 << 20, 2048],
  ])('of a file of %i bytes shows the first %i', async (size, shown) => {
    const seen: ProbeInput[] = [];
    await probeFormat(new MemoryStore({ size }), 'n', [format('x', (asked) => seen.push(asked))]);
    expect(seen[0]?.head.length).toBe(shown);
    expect(seen[0]).toMatchObject({ fileSize: size, name: 'n' });
  });

  it('reads whole sectors where the store wants that', async () => {
    class Device extends MemoryStore {
      override readonly limits = { ...new MemoryStore().limits, requestAlign: 4096 };
    }
    const seen: ProbeInput[] = [];
    await probeFormat(new Device({ size: 8192 }), 'n', [format('x', (asked) => seen.push(asked))]);
    expect(seen[0]?.head.length).toBe(2048);
  });
});
