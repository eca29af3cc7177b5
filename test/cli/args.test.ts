import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Arguments, type OptionSpec } from '../../src/cli/args.ts';
import { Failure } from '../../src/cli/failure.ts';

const SPECS: readonly OptionSpec[] = [
  { key: 'quiet', short: 'q', moreLong: ['quiet'], help: '', support: 'acts' },
  { key: 'format', short: 'f', long: 'format', value: 'FMT', help: '', support: 'acts' },
  { key: 'output', long: 'output', value: 'FORM', help: '', support: 'acts' },
  { key: 'object', long: 'object', value: 'DEF', help: '', support: 'acts' },
  { key: 'options', short: 'o', moreLong: ['options'], value: 'LIST', help: '', support: 'acts' },
  { key: 'progress', moreLong: ['progress'], value: 'FORM', optionalValue: true, help: '', support: 'acts' },
];

function parse(words: readonly string[], permute = true): { given: string[]; operands: readonly string[] } {
  const walk = new Arguments(SPECS, words, 'verb', permute);
  const given = [...walk].map(({ spec, value }) => (value === undefined ? spec.key : `${spec.key}=${value}`));
  return { given, operands: walk.operands };
}

function message(words: readonly string[]): string {
  try {
    parse(words);
  } catch (error) {
    expect(error).toBeInstanceOf(Failure);
    return (error as Failure).message;
  }
  throw new Error('was accepted');
}

describe('the argument grammar', () => {
  it('takes values attached, separate, and after an equals sign', () => {
    expect(parse(['-fraw', '-f', 'raw', '--format=raw', '--format', 'raw']).given).toEqual(Array(4).fill('format=raw'));
  });

  it('reads clusters of short options, the last of which may have a value', () => {
    expect(parse(['-qfraw']).given).toEqual(['quiet', 'format=raw']);
    expect(parse(['-qf', 'raw', 'x'])).toEqual({ given: ['quiet', 'format=raw'], operands: ['x'] });
  });

  it('lets operands stand before options', () => {
    expect(parse(['a', '-q', 'b', '-f', 'raw', 'c'])).toEqual({
      given: ['quiet', 'format=raw'],
      operands: ['a', 'b', 'c'],
    });
  });

  it('ends the options at the first operand when operands may not come first', () => {
    expect(parse(['-q', 'a', '-q'], false)).toEqual({ given: ['quiet'], operands: ['a', '-q'] });
  });

  it('takes everything after two dashes as operands', () => {
    expect(parse(['a', '-q', '--', '-f', '--foo'])).toEqual({ given: ['quiet'], operands: ['a', '-f', '--foo'] });
  });

  it('takes a single dash as an operand', () => {
    expect(parse(['-q', '-'])).toEqual({ given: ['quiet'], operands: ['-'] });
  });

  it('takes whatever follows as the value, even what looks like an option', () => {
    expect(parse(['-f', '-q', '--output', '--']).given).toEqual(['format=-q', 'output=--']);
  });

  it('accepts a prefix of a long name that means one option', () => {
    expect(parse(['--outp=json', '--f', 'raw', '--q']).given).toEqual(['output=json', 'format=raw', 'quiet']);
  });

  it('prefers the names of QEMU 7.2 when a prefix fits newer ones too', () => {
    expect(parse(['--ob=x']).given).toEqual(['object=x']);
    expect(parse(['--op=x']).given).toEqual(['options=x']);
  });

  it('refuses a prefix that fits several names', () => {
    expect(message(['--o', 'x'])).toBe("unrecognized option '--o'");
  });

  it('takes an optional value only when it is attached', () => {
    expect(parse(['--progress=json', '--progress', 'json'])).toEqual({
      given: ['progress=json', 'progress'],
      operands: ['json'],
    });
  });

  it('names the argument that qemu-img names: in a cluster the one before', () => {
    expect(message(['--foo'])).toBe("unrecognized option '--foo'");
    expect(message(['-Z'])).toBe("unrecognized option '-Z'");
    expect(message(['-qZ'])).toBe("unrecognized option '-qZ'");
    expect(message(['-Zq'])).toBe("unrecognized option 'verb'");
    expect(message(['--quiet=1'])).toBe("unrecognized option '--quiet=1'");
    expect(message(['-f'])).toBe("missing argument for option '-f'");
    expect(message(['-qf'])).toBe("missing argument for option '-qf'");
    expect(message(['a', '--output'])).toBe("missing argument for option '--output'");
  });

  it('loses no operand and keeps their order, wherever options stand between them', () => {
    const word = fc.oneof(fc.constantFrom('a', 'b', '-', 'c=d'), fc.constantFrom('-q', '-fx', '--format=x', '--quiet'));
    fc.assert(
      fc.property(fc.array(word), (words) => {
        const options = words.filter((candidate) => candidate.startsWith('-') && candidate !== '-');
        const { given, operands } = parse(words);
        expect(given).toHaveLength(options.length);
        expect(operands).toEqual(words.filter((candidate) => !options.includes(candidate)));
      }),
    );
  });
});
