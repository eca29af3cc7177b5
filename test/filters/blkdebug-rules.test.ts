/** blkdebug's rules file, well formed and not. Every line was tried with QEMU 7.2. */
import { describe, expect, it } from 'vitest';
import { parseRulesFile } from '../../src/filters/blkdebug-rules.ts';

function failure(content: string): { code: string; reason: string | undefined; message: string } {
  try {
    parseRulesFile(content, 'rules.cfg');
  } catch (error) {
    return error as { code: string; reason: string | undefined; message: string };
  }
  throw new Error('it was read');
}

describe('a rules file', () => {
  it('holds sections with quoted values, comments and empty lines', () => {
    const rules = parseRulesFile(
      [
        '# a comment',
        '[set-state]',
        'event = "l2_load"',
        'state = "1"',
        'new_state = "0x2"',
        '',
        '[inject-error "one"]',
        '  event =   "write_aio"   and what follows the quotes does not matter',
        'errno = "28"',
        'state = "2"',
        'iotype = "write"',
        'sector = "010"',
        'once = "on"',
        'immediately = "on"',
      ].join('\n'),
      'rules.cfg',
    );
    expect(rules).toEqual([
      {
        action: 'inject-error',
        event: 'write_aio',
        state: 2,
        errno: 'ENOSPC',
        ioTypes: new Set(['write']),
        offset: 8 * 512,
        once: true,
        immediately: true,
      },
      { action: 'set-state', event: 'l2_load', state: 1, newState: 2 },
    ]);
  });

  it('leaves out what has a default: any state, EIO, any request but status, again and again', () => {
    expect(parseRulesFile('[inject-error]\nevent = "none"\n', 'r')).toEqual([
      {
        action: 'inject-error',
        event: 'none',
        state: 0,
        errno: 'EIO',
        ioTypes: new Set(['read', 'write', 'write-zeroes', 'discard', 'flush']),
        offset: -1,
        once: false,
        immediately: false,
      },
    ]);
  });

  it('may say that requests succeed: error number 0', () => {
    expect(parseRulesFile('[inject-error]\nevent = "none"\nerrno = "0"\n', 'r')[0]).toMatchObject({ errno: undefined });
  });

  it('may be empty', () => {
    expect(parseRulesFile('\n\n# nothing\n', 'r')).toEqual([]);
  });

  it.each([
    ['x = "1"\n', 'blkdebug.rules-no-section'],
    [' [inject-error]\n', 'blkdebug.rules-no-section'],
    ['[]\n', 'blkdebug.rules-no-section'],
    ['[foo]\n', 'blkdebug.rules-section'],
    ['[inject-error\nevent = "none"\n', 'blkdebug.rules-section'],
    ['[inject-error "9!"]\n', 'blkdebug.rules-id'],
    ['[inject-error "a"]\nevent = "none"\n[inject-error "a"]\n', 'blkdebug.rules-id-twice'],
    [' \n', 'blkdebug.rules-syntax'],
    [`[inject-error]\nevent = "${'x'.repeat(2000)}"\n`, 'blkdebug.rules-line'],
    ['[inject-error]\nstate = "1"\n', 'blkdebug.event-missing'],
    ['[inject-error]\nevent = "l2_lod"\n', 'blkdebug.value'],
    ['[inject-error]\nevent = l2_load\n', 'blkdebug.value'],
    ['[inject-error]\nevent = "none"\niotype = "foo"\n', 'blkdebug.value'],
    ['[inject-error]\nevent = "none"\nfoo = "1"\n', 'blkdebug.rules-name'],
    ['[inject-error]\nevent="none"\n', 'blkdebug.rules-name'],
    ['[set-state]\nevent = "none"\nerrno = "4"\n', 'blkdebug.rules-name'],
    ['[inject-error]\nevent = "none"\nstate = "x"\n', 'blkdebug.rules-number'],
    ['[inject-error]\nevent = "none"\nerrno = "99999999999999999999999"\n', 'blkdebug.rules-large'],
    ['[inject-error]\nevent = "none"\nerrno = "4095"\n', 'blkdebug.errno'],
    ['[inject-error]\nevent = "none"\nsector = "9007199254740991"\n', 'blkdebug.sector'],
    ['[inject-error]\nevent = "none"\nonce = "maybe"\n', 'blkdebug.rules-bool'],
  ])('is refused as a whole where a rule is not understood: %j', (content, reason) => {
    expect(failure(content)).toMatchObject({ code: 'OPTION', reason });
  });

  it('says where it is wrong', () => {
    expect(failure('\n[foo]\n').message).toBe(
      'blkdebug: "rules.cfg": line 2 begins a section \'foo\'; there are inject-error and set-state',
    );
  });
});
