import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Objects } from '../../src/cli/objects.ts';

describe('objects defined on the command line', () => {
  it('keeps secrets by their id, from a list or from JSON', () => {
    const objects = new Objects();
    objects.add('secret,id=a,data=abc');
    objects.add('{"qom-type":"secret","id":"b","data":"YWJj","format":"base64"}');
    expect(objects.secret('a')).toEqual({ id: 'a', data: new TextEncoder().encode('abc'), format: 'raw' });
    expect(objects.secret('b')?.format).toBe('base64');
    expect(objects.secret('c')).toBeUndefined();
  });

  it('reads a secret from a file', () => {
    const directory = mkdtempSync(join(tmpdir(), 'cowdisk-objects-'));
    try {
      writeFileSync(join(directory, 'key'), 'xyz');
      const objects = new Objects();
      objects.add(`secret,id=a,file=${join(directory, 'key')}`);
      expect(new TextDecoder().decode(objects.secret('a')?.data)).toBe('xyz');
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it.each([
    ['foo', "Parameter 'qom-type' does not accept value 'foo'"],
    ['id=s', "Parameter 'qom-type' is missing"],
    ['secret', "Parameter 'id' is missing"],
    ['secret,id=s', "Either 'file' or 'data' must be provided"],
    ['secret,id=s,data=a,file=b', "'file' and 'data' are mutually exclusive"],
    ['secret,id=s,data=a,foo=x', "Parameter 'foo' is unexpected"],
    ['secret,id=s,data=a,format=foo', "Parameter 'format' does not accept value 'foo'"],
    ['secret,id=1 x,data=a', "Parameter 'id' expects an identifier"],
    ['secret,id=s,data=a,keyid=k', "secrets encrypted with another one ('keyid') are not supported"],
    ['tls-creds-x509,id=t', 'invalid object type: tls-creds-x509'],
    ['{"a"', '--object: the JSON text is malformed'],
  ])('refuses %s', (definition, message) => {
    expect(() => new Objects().add(definition)).toThrow(message);
  });

  it('refuses the same id twice', () => {
    const objects = new Objects();
    objects.add('secret,id=s,data=a');
    expect(() => objects.add('secret,id=s,data=b')).toThrow("attempt to add duplicate property 's'");
  });

  it('never shows the text of a secret in a message', () => {
    expect(() => new Objects().add('secret,id=s,data=geheim,foo=x')).toThrow(/^(?!.*geheim)/);
  });
});
