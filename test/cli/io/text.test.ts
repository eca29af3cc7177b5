/** Sizes, reports, dumps and words as QEMU's shell has them. */
import { describe, expect, it } from 'vitest';
import { Letters, wordsOf } from '../../../src/cli/io/getopt.ts';
import { bytesArgument, millisecondsArgument, patternByte, totalLength } from '../../../src/cli/io/numbers.ts';
import { Refusal } from '../../../src/cli/io/refusal.ts';
import { COMMANDS, findCommand, helpOf, helpOfAll } from '../../../src/cli/io/table.ts';
import { complete } from '../../../src/cli/io/terminal.ts';
import { dumpText, fixed3, reportText, sizeText } from '../../../src/cli/io/text.ts';

const warner = { warn: (): void => undefined };

function refusal(body: () => unknown): string {
  try {
    body();
  } catch (error) {
    if (error instanceof Refusal) return error.out + error.err;
    throw error;
  }
  return '';
}

describe('sizes', () => {
  it.each([
    [0, '0 bytes'],
    [1023, '1023 bytes'],
    [1024, '1 KiB'],
    [1025, '1.001 KiB'],
    [1536, '1.500 KiB'],
    [1048575, '1023.999 KiB'],
    [1048577, '1 MiB'],
    [2 ** 40, '1 TiB'],
    [2 ** 62, '4 EiB'],
    [550.956902, '550.956902 bytes'],
    [1088, '1.062 KiB'],
    [1216, '1.188 KiB'],
  ])('%s is %s', (bytes, text) => expect(sizeText(bytes)).toBe(text));

  it('round exact halves to even', () => {
    expect(fixed3(0.0625)).toBe('0.062');
    expect(fixed3(0.1875)).toBe('0.188');
    expect(fixed3(2.5)).toBe('2.500');
  });
});

describe('the report of a request', () => {
  const report = { did: 'read', offset: 512, length: 65536, milliseconds: 250, brief: false };

  it('has bytes, time and rates', () => {
    expect(reportText(report)).toBe(
      'read 65536/65536 bytes at offset 512\n64 KiB, 1 ops; 00.25 sec (256 KiB/sec and 4.0000 ops/sec)\n',
    );
    expect(reportText({ ...report, brief: true })).toBe('65536,1,0:00:00.25,262144.000,4.000\n');
  });

  it('has minutes and hours where it took them', () => {
    expect(reportText({ ...report, milliseconds: 61_560 })).toContain('1 ops; 0:01:01.56 (');
    expect(reportText({ ...report, milliseconds: 23_218_490 })).toContain('1 ops; 6:26:58.49 (');
  });

  it('has no infinite rates', () => {
    expect(reportText({ ...report, milliseconds: 0 })).not.toMatch(/Infinity|NaN/);
  });
});

describe('a dump', () => {
  it('has sixteen bytes on a line, and letters and digits as they are', () => {
    const bytes = Uint8Array.from([0, 255, 0x41, 0x7a, 0x30, 0x20, 0x2e, 0x7f, ...Array(10).fill(0x61)]);
    expect(dumpText(bytes, 0x1000)).toBe(
      '00001000:  00 ff 41 7a 30 20 2e 7f 61 61 61 61 61 61 61 61  ..Az0...aaaaaaaa\n' + '00001010:  61 61  aa\n',
    );
  });
});

describe('numbers', () => {
  it('are refused in words that name them', () => {
    expect(refusal(() => bytesArgument('5x', warner))).toContain('unrecognized suffix -- 5x');
    expect(refusal(() => bytesArgument('8E', warner))).toBe('Parsing error: argument too large -- 8E\n');
    expect(refusal(() => patternByte('256'))).toBe('256 is not a valid pattern byte\n');
    expect(refusal(() => millisecondsArgument('-1'))).toBe('-1 is not a valid number\n');
    expect(refusal(() => totalLength(['1G', '1G'], warner))).toContain('exceed the maximum size 2147483136');
  });

  it('beyond those that are exact stay beyond every disk', () => {
    expect(bytesArgument('7E', warner)).toBe(Number.MAX_SAFE_INTEGER);
  });
});

describe('the words of a line', () => {
  const letters = (line: string, accepted: string): string => {
    const found = new Letters(wordsOf(line), accepted, 'usage');
    const given = [...found].map(({ letter, value }) => letter + value);
    return `${given.join(',')}|${found.operands.join(',')}`;
  };

  it('are separated by blanks, with options anywhere before --', () => {
    expect(letters('  x -ab 1  -P5 -P 6 - 2 -- -c', 'abP:')).toBe('a,b,P5,P6|1,-,2,-c');
  });

  it('are told what is wrong with their options', () => {
    expect(refusal(() => letters('x -q', 'ab'))).toBe("usage\nx: invalid option -- 'q'\n");
    expect(refusal(() => letters('x -:', 'a:'))).toBe("usage\nx: invalid option -- ':'\n");
    expect(refusal(() => letters('x -P', 'P:'))).toBe("usage\nx: option requires an argument -- 'P'\n");
  });
});

describe('the table of commands', () => {
  it('is in the order of help, without a name twice', () => {
    const names = COMMANDS.map(({ name }) => name);
    expect(names).toEqual(names.toSorted());
    const words = COMMANDS.flatMap(({ name, alias }) => (alias === undefined ? [name] : [name, alias]));
    expect(new Set(words).size).toBe(words.length);
    expect(helpOfAll().split('\n').length).toBe(names.length + 3);
  });

  it.each(COMMANDS)('explains every letter of $name that it accepts', (spec) => {
    const accepted = [...spec.letters.replaceAll(':', '')].sort();
    const explained = spec.options.map(([letter]) => letter).sort();
    expect(explained).toEqual(accepted);
    for (const [letter] of spec.options) expect(helpOf(spec)).toContain(` -${letter}  `);
  });
});

describe('completion', () => {
  it.each([
    ['re', ['read ', 'readv ', 'remove_break ', 'reopen ', 'resume '], 're'],
    ['read -', ['-b ', '-C ', '-P ', '-l ', '-s ', '-p ', '-q ', '-v '], '-'],
    ['help tr', ['truncate'], 'tr'],
    ['open -t w', ['writeback ', 'writethrough '], 'w'],
    ['open -nt un', ['unsafe '], 'un'],
    ['truncate -m f', ['falloc ', 'full '], 'f'],
    ['open test/cli/io/tex', ['test/cli/io/text.test.ts'], 'test/cli/io/tex'],
    ['open test/cl', ['test/cli/'], 'test/cl'],
    ['read -P ', [], ''],
    ['nothing ', [], ''],
    ['open no/such/dir', [], 'no/such/dir'],
  ])('of "%s"', (line, candidates, word) => expect(complete(line)).toEqual([candidates, word]));

  it('offers every command, and no alias', () => {
    expect(complete('')[0].map((name) => name.trim())).toEqual(COMMANDS.map(({ name }) => name));
    expect(findCommand('r')?.name).toBe('read');
  });
});
