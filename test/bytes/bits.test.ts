import fc from 'fast-check';
import { expect, it } from 'vitest';
import { clearBits, findRunEnd, getBit, setBits } from '../../src/bytes/bits.ts';

it('bits are counted from the lowest of each byte', () => {
  const bytes = new Uint8Array(2);
  setBits(bytes, 1, 2);
  setBits(bytes, 15, 16);
  expect([...bytes]).toEqual([0b10, 0b1000_0000]);
  expect([getBit(bytes, 0), getBit(bytes, 1), getBit(bytes, 15)]).toEqual([false, true, true]);
});

it('setting, clearing and finding runs agree with an array of booleans, whatever is done', () => {
  const size = 100;
  const range = fc.tuple(fc.nat(size), fc.nat(size)).map(([a, b]) => [Math.min(a, b), Math.max(a, b)] as const);
  const step = fc.tuple(fc.boolean(), range);
  fc.assert(
    fc.property(fc.array(step, { maxLength: 20 }), fc.nat(size - 1), fc.nat(size), (steps, start, limit) => {
      const bytes = new Uint8Array(Math.ceil(size / 8));
      const model = new Array<boolean>(size).fill(false);
      for (const [set, [from, to]] of steps) {
        (set ? setBits : clearBits)(bytes, from, to);
        model.fill(set, from, to);
      }
      expect(model.map((_, i) => getBit(bytes, i))).toEqual(model);
      const end = Math.max(limit, start + 1);
      let wanted = start + 1;
      while (wanted < end && wanted < size && model[wanted] === model[start]) wanted++;
      if (end <= size) expect(findRunEnd(bytes, new DataView(bytes.buffer), start, end)).toBe(wanted);
    }),
  );
});
