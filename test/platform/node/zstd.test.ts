/** Units as zstd frames: what QEMU's reader takes, and what it must never do whatever the frame says. Every engine of this Node is tested. */
import { describe, expect, it } from 'vitest';
import {
  builtinZstd,
  decodeZstdUnit,
  startZstd,
  wasmZstd,
  type ZstdEngine,
  zstdEngine,
} from '../../../src/platform/node/zstd.ts';
import { scanZstdFrame } from '../../../src/platform/node/zstd-frame.ts';
import {
  disk,
  expectSame,
  join,
  lines,
  noise,
  QEMU_ZSTD,
  skippableFrame,
  ZSTD_OF_A_PIPE,
  zstdFrame,
} from './fixtures/samples.ts';

const wasm = await wasmZstd();
const own = builtinZstd();
const ENGINES: readonly ZstdEngine[] = own === undefined ? [wasm] : [wasm, own];

function decode(encoded: Uint8Array, unit: number, by: ZstdEngine): Uint8Array | string {
  const into = new Uint8Array(unit).fill(0xee);
  return decodeZstdUnit(encoded, into, by) ?? into;
}

describe('startZstd', () => {
  it("loads Node's own zstd where there is one, else WASM, and is ready at once from then on", async () => {
    await startZstd();
    expect(zstdEngine().name).toBe(own === undefined ? 'wasm' : 'builtin');
    expect(startZstd()).toBeUndefined();
  });
});

describe.each(ENGINES.map((engine) => [engine.name, engine] as const))('zstd by %s', (_name, engine) => {
  it.each([512, 4096, 65536, 2 * 1024 * 1024])('gives back units of %i bytes', (unit) => {
    for (let seed = 0; seed < 4; seed++) {
      const source = disk(1, unit, seed);
      const encoded = engine.encode(source);
      expectSame(decode(encoded, unit, engine), source);
      expectSame(decode(join(encoded, noise(700, seed)), unit, engine), source);
    }
  });

  it('writes one frame that tells its content size, the same bytes whatever came before', () => {
    const source = lines(65536, 7);
    const first = engine.encode(source);
    expect(scanZstdFrame(first, 0)).toMatchObject({ length: first.length, contentSize: 65536 });
    engine.encode(noise(65536, 1));
    engine.encode(lines(2 * 1024 * 1024, 1));
    decode(ZSTD_OF_A_PIPE, 4096, engine);
    expectSame(engine.encode(source), first);
  });

  it("reads QEMU's clusters, with the next cluster or zeros behind them", () => {
    expectSame(decode(QEMU_ZSTD[0], 4096, engine), lines(4096, 0));
    expectSame(decode(join(QEMU_ZSTD[0].subarray(256), new Uint8Array(300)), 4096, engine), lines(4096, 1));
  });

  it('reads frames that do not tell their content size and end with a checksum', () => {
    expectSame(decode(join(ZSTD_OF_A_PIPE, noise(400, 2)), 4096, engine), lines(4096, 0));
  });

  it('reads several frames, empty and skippable ones between, until the unit is full', () => {
    const source = lines(8192, 3);
    const encoded = join(
      skippableFrame(300),
      engine.encode(source.subarray(0, 5000)),
      zstdFrame([{ type: 'raw' }]),
      skippableFrame(0),
      zstdFrame([{ type: 'raw', bytes: source.subarray(5000, 6000) }]),
      engine.encode(source.subarray(6000)),
      noise(100, 1),
    );
    expectSame(decode(encoded, 8192, engine), source);
  });

  it('refuses a checksum that does not fit', () => {
    const broken = Uint8Array.from(ZSTD_OF_A_PIPE);
    broken[broken.length - 1] = 0;
    expect(typeof decode(broken, 4096, engine)).toBe('string');
  });

  it('refuses every cut of a frame, and changed bytes without touching anything but the unit', () => {
    const whole = engine.encode(lines(4096, 5));
    for (let length = 0; length < whole.length; length += 7) {
      expect(typeof decode(whole.subarray(0, length), 4096, engine), `${length} bytes`).toBe('string');
    }
    for (let i = 0; i < 400; i++) {
      const broken = Uint8Array.from(whole);
      const where = (i * 37) % broken.length;
      broken[where] = (broken[where] as number) ^ (1 + (i % 255));
      const memory = new Uint8Array(3 * 4096);
      decodeZstdUnit(broken, memory.subarray(4096, 8192), engine);
      expect(memory.subarray(0, 4096).every((byte) => byte === 0)).toBe(true);
      expect(memory.subarray(8192).every((byte) => byte === 0)).toBe(true);
    }
    expectSame(decode(whole, 4096, engine), lines(4096, 5));
  });

  it('refuses content that is longer or shorter than the unit, told or not', () => {
    const source = lines(4096, 1);
    expect(decode(engine.encode(source), 4095, engine)).toBe('it holds more than 4095 bytes');
    expect(decode(engine.encode(source), 4097, engine)).toBe('it holds 4096 bytes only');
    expect(decode(ZSTD_OF_A_PIPE, 4095, engine)).toBe('it holds more than 4095 bytes');
    expect(decode(ZSTD_OF_A_PIPE, 4097, engine)).toBe('it holds 4096 bytes only');
    expect(typeof decode(zstdFrame([{ type: 'rle', count: 4096 }], { contentSize: 100 }), 4096, engine)).toBe('string');
  });

  it('takes a window of 8 MiB or the unit, and refuses more', () => {
    const blocks = [{ type: 'raw', bytes: lines(512, 0) }] as const;
    expectSame(decode(zstdFrame(blocks, { windowDescriptor: 13 * 8 }), 512, engine), lines(512, 0));
    expect(decode(zstdFrame(blocks, { windowDescriptor: 13 * 8 + 1 }), 512, engine)).toMatch(
      /needs a window of 9437184/,
    );
  });

  it('stays within memory bounds for frames that ask for gigabytes', () => {
    const block = { type: 'rle', count: 128 * 1024 } as const;
    const endless = Array.from({ length: 16_384 }, () => block);
    const before = process.resourceUsage().maxRSS;
    expect(decode(zstdFrame(endless), 65536, engine)).toBe('it holds more than 65536 bytes');
    expect(decode(zstdFrame(endless, { contentSize: 2 ** 31 }), 65536, engine)).toBe('it holds more than 65536 bytes');
    expect(decode(zstdFrame(endless, { contentSize: 65536 }), 65536, engine)).toEqual(expect.any(String));
    expect(decode(zstdFrame(endless, { contentSize: 2 ** 64 - 2048 }), 65536, engine)).toEqual(expect.any(String));
    expect(decode(zstdFrame([block], { windowDescriptor: 21 * 8 }), 65536, engine)).toMatch(
      /needs a window of 2147483648/,
    );
    // The frames themselves take some memory; their contents would be 2 GiB. In KiB.
    expect(process.resourceUsage().maxRSS - before).toBeLessThan(128 * 1024);
  });
});

describe.skipIf(own === undefined)('the two engines', () => {
  it('make the same bytes of clusters up to 64 KiB, and read each other', () => {
    for (let seed = 0; seed < 8; seed++) {
      const source = disk(1, 65536, seed);
      const encoded = (own as ZstdEngine).encode(source);
      expectSame(encoded, wasm.encode(source));
      expectSame(decode(encoded, 65536, wasm), source);
    }
  });
});
