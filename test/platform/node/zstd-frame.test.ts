/** The end of a zstd frame, found without decoding it. */
import { describe, expect, it } from 'vitest';
import { scanZstdFrame } from '../../../src/platform/node/zstd-frame.ts';
import { join, lines, noise, QEMU_ZSTD, skippableFrame, ZSTD_OF_A_PIPE, zstdFrame } from './fixtures/samples.ts';

describe('scanZstdFrame', () => {
  it("finds the end of QEMU's frame before the next cluster's frame", () => {
    const bytes = QEMU_ZSTD[0];
    const first = scanZstdFrame(bytes, 0);
    expect(first).toEqual({ length: 256, skippable: false, contentSize: 4096, window: 4096 });
    expect(scanZstdFrame(bytes, 256)).toMatchObject({ contentSize: 4096 });
  });

  it('finds the end of a frame that does not tell its content size and ends with a checksum', () => {
    const frame = scanZstdFrame(join(ZSTD_OF_A_PIPE, noise(100, 1)), 0);
    expect(frame).toEqual({
      length: ZSTD_OF_A_PIPE.length,
      skippable: false,
      contentSize: -1,
      window: 2 * 1024 * 1024,
    });
  });

  it('tells the length of skippable frames', () => {
    expect(scanZstdFrame(join(skippableFrame(300), noise(10, 1)), 0)).toMatchObject({ length: 308, skippable: true });
  });

  it('tells the window a frame asks for, up to the largest that the field can say', () => {
    const raw = [{ type: 'raw', bytes: lines(10, 0) }] as const;
    expect(scanZstdFrame(zstdFrame(raw, { windowDescriptor: 21 * 8 }), 0)).toMatchObject({ window: 2 ** 31 });
    expect(scanZstdFrame(zstdFrame(raw, { windowDescriptor: 31 * 8 + 7 }), 0)).toMatchObject({
      window: 2 ** 41 * 1.875,
    });
  });

  it('tells a content size beyond 2^53 as something larger than everything', () => {
    const frame = scanZstdFrame(zstdFrame([{ type: 'rle', count: 1 }], { contentSize: 2 ** 63 }), 0);
    expect(frame).toMatchObject({ contentSize: 2 ** 63 });
  });

  it('says for every cut of a frame that it is truncated', () => {
    for (const whole of [ZSTD_OF_A_PIPE, QEMU_ZSTD[0].subarray(0, 256), skippableFrame(20)]) {
      expect(scanZstdFrame(whole, 0)).toMatchObject({ length: whole.length });
      for (let length = 0; length < whole.length; length++) {
        expect(scanZstdFrame(whole.subarray(0, length), 0), `${length} bytes`).toBe('the zstd frame is truncated');
      }
    }
  });

  it('refuses what is no frame, reserved bits and blocks, and dictionaries', () => {
    const raw = [{ type: 'raw', bytes: lines(10, 0) }] as const;
    expect(scanZstdFrame(noise(64, 3), 0)).toMatch(/no zstd frame/);
    expect(scanZstdFrame(zstdFrame(raw, { reservedBit: true }), 0)).toMatch(/reserved bit/);
    expect(scanZstdFrame(zstdFrame([{ type: 'reserved' }]), 0)).toMatch(/reserved type/);
    expect(scanZstdFrame(zstdFrame(raw, { dictionaryId: 7 }), 0)).toMatch(/dictionary/);
  });
});
