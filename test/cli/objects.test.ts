import { createCipheriv } from 'node:crypto';
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
    expect(objects.secrets).toEqual({ a: new TextEncoder().encode('abc'), b: new TextEncoder().encode('abc') });
  });

  it('reads a secret from a file', () => {
    const directory = mkdtempSync(join(tmpdir(), 'cowdisk-objects-'));
    try {
      writeFileSync(join(directory, 'key'), 'xyz');
      const objects = new Objects();
      objects.add(`secret,id=a,file=${join(directory, 'key')}`);
      expect(new TextDecoder().decode(objects.secrets['a'])).toBe('xyz');
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it.each([
    ['YWJj', 'abc'],
    ['YW\nJj', 'abc'],
    ['YWI=', 'ab'],
    ['YQ==', 'a'],
    ['YWJjZA', 'abc'],
    ['YQ==YWI=', 'aab'],
    ['', ''],
  ])('decodes base64 %j as QEMU does', (data, text) => {
    const objects = new Objects();
    objects.add(`secret,id=a,data=${data},format=base64`);
    expect(new TextDecoder().decode(objects.secrets['a'])).toBe(text);
  });

  it('decrypts a secret with another one', () => {
    const objects = new Objects();
    const key = Buffer.alloc(32, 7);
    const iv = Buffer.alloc(16, 9);
    const cipher = createCipheriv('aes-256-cbc', key, iv);
    const data = Buffer.concat([cipher.update('a text of more than sixteen bytes'), cipher.final()]).toString('base64');
    objects.add(`secret,id=k,data=${key.toString('base64')},format=base64`);
    objects.add(`secret,id=a,data=${data},format=base64,keyid=k,iv=${iv.toString('base64')}`);
    expect(new TextDecoder().decode(objects.secrets['a'])).toBe('a text of more than sixteen bytes');
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
    ['secret,id=s,data=a,keyid=k', "No secret with id 'k'"],
    ['secret,id=s,data=a,keyid=s', "Secret with id 's' has no data"],
    ['secret,id=s,data=a,loaded=on', "Property 'secret.loaded' is not writable"],
    ['secret,id=s,data=YW Jj,format=base64', 'Base64 data contains invalid characters'],
    ['{"qom-type":"secret","id":"s","data":5}', "Invalid parameter type for 'data', expected: string"],
    ['tls-creds-x509,id=t', 'invalid object type: tls-creds-x509'],
    ['{"a"', 'JSON parse error, premature EOI'],
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
