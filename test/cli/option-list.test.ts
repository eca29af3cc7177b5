import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { appendOptionList, asksForHelp, escapeCommas, parseOptionList } from '../../src/cli/option-list.ts';

describe('lists of options', () => {
  it('separates options at commas, and takes doubled ones as part of a value', () => {
    expect(parseOptionList('a=1,b=x,,y,c=a=b')).toEqual([
      { name: 'a', value: '1' },
      { name: 'b', value: 'x,y' },
      { name: 'c', value: 'a=b' },
    ]);
  });

  it('takes a name alone for on, and with no in front for off', () => {
    expect(parseOptionList('lazy,nolazy')).toEqual([
      { name: 'lazy', value: 'on' },
      { name: 'lazy', value: 'off' },
    ]);
  });

  it('brings back any value whose commas were doubled', () => {
    fc.assert(
      fc.property(fc.array(fc.string({ minLength: 1 }), { minLength: 1 }), (values) => {
        const list = values.map((value, i) => `k${i}=${escapeCommas(value)}`).join(',');
        expect(parseOptionList(list)).toEqual(values.map((value, i) => ({ name: `k${i}`, value })));
      }),
    );
  });

  it('joins lists given one after the other', () => {
    expect(appendOptionList(appendOptionList(undefined, 'a=1'), 'b=2')).toBe('a=1,b=2');
  });

  it.each(['', ',', ',,', ',a=1', 'a=1,', 'a=1,,,'])('refuses to join %j', (list) => {
    expect(() => appendOptionList(undefined, list)).toThrow(`Invalid option list: ${list}`);
  });

  it('finds the wish for help only where it is an option of its own', () => {
    expect(asksForHelp('help')).toBe(true);
    expect(asksForHelp('size=1M,?')).toBe(true);
    expect(asksForHelp('help=x')).toBe(false);
    expect(asksForHelp('a=,,help')).toBe(false);
  });
});
