/** Units as raw deflate streams. */
import { deflateRawSync, inflateRawSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { deflateUnit, inflateUnit } from '../../../src/platform/node/deflate.ts';
import { disk, expectSame, join, lines, noise, QEMU_DEFLATE } from './fixtures/samples.ts';

function inflate(encoded: Uint8Array, unit: number): Uint8Array | string {
  const into = new Uint8Array(unit).fill(0xee);
  return inflateUnit(encoded, into) ?? into;
}

describe('deflateUnit', () => {
  it.each([512, 4096, 65536, 2 * 1024 * 1024])('makes streams of units of %i bytes that inflate to them', (unit) => {
    for (let seed = 0; seed < 4; seed++) {
      const source = disk(1, unit, seed);
      const encoded = deflateUnit(source);
      expectSame(inflate(encoded, unit), source);
      expectSame(inflate(join(encoded, noise(700, seed)), unit), source);
    }
  });

  it('refers back 4096 bytes at most, because QEMU reads with that window', () => {
    const source = join(noise(5000, 1), noise(5000, 1), lines(6000, 2));
    // A small output chunk makes zlib keep to the window it was given.
    const strict = inflateRawSync(deflateUnit(source), { windowBits: 12, chunkSize: 64 });
    expectSame(strict, source);
    const wide = deflateRawSync(source, { windowBits: 15 });
    expect(() => inflateRawSync(wide, { windowBits: 12, chunkSize: 64 })).toThrow('too far back');
  });
});

describe('inflateUnit', () => {
  it("reads QEMU's clusters, with the next cluster or zeros behind them", () => {
    expectSame(inflate(QEMU_DEFLATE[0], 4096), lines(4096, 0));
    expectSame(inflate(join(QEMU_DEFLATE[1], new Uint8Array(60)), 4096), lines(4096, 1));
  });

  it('reads streams that refer back farther than the window QEMU writes', () => {
    const half = noise(32_768, 1);
    const source = join(half.subarray(0, 20_000), half.subarray(0, 20_000), half.subarray(0, 25_536));
    const encoded = deflateRawSync(source, { windowBits: 15 });
    expect(encoded.length).toBeLessThan(30_000);
    expectSame(inflate(encoded, 65536), source);
  });

  it('refuses every cut of a stream', () => {
    const whole = deflateUnit(lines(4096, 5));
    for (let length = 0; length < whole.length; length += 5) {
      expect(inflate(whole.subarray(0, length), 4096), `${length} bytes`).toBe('unexpected end of file');
    }
  });

  it('refuses broken streams, and content that is longer or shorter than the unit', () => {
    expect(typeof inflate(Uint8Array.of(7, 1, 2, 3), 4096)).toBe('string');
    const encoded = deflateUnit(lines(4096, 1));
    expect(inflate(encoded, 4095)).toBe('it holds more than 4095 bytes');
    expect(inflate(encoded, 4097)).toBe('it holds 4096 bytes only');
    expect(inflate(encoded, 1)).toBe('it holds more than 1 bytes');
  });

  it('stays within memory bounds for a stream that holds a gigabyte', () => {
    // 1 MiB of zeros as one block without its end-of-stream mark, repeated.
    const mebibyte = deflateRawSync(new Uint8Array(1024 * 1024), { finishFlush: 3 });
    const bomb = new Uint8Array(Buffer.concat(Array.from({ length: 1024 }, () => mebibyte)));
    const before = process.resourceUsage().maxRSS;
    expect(inflate(bomb, 65536)).toBe('it holds more than 65536 bytes');
    expect(process.resourceUsage().maxRSS - before).toBeLessThan(64 * 1024);
  });

  it('serves endless different unit sizes', () => {
    for (let unit = 512; unit < 800; unit++) expectSame(inflate(deflateUnit(lines(unit, 1)), unit), lines(unit, 1));
  });
});
