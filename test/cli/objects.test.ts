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

describe('throttle groups defined on the command line', () => {
  const group = (properties: string) => () => new Objects().add(`throttle-group,id=g0,${properties}`);

  it('are kept by their id, in either spelling, from a list or from JSON', () => {
    const objects = new Objects();
    objects.add('throttle-group,id=a,x-iops-total=100');
    objects.add('throttle-group,id=b,limits.bps-read=0x10,limits.bps-read-max=32');
    objects.add('{"qom-type":"throttle-group","id":"c","limits":{"iops-total":100}}');
    objects.add('throttle-group,id=d');
    expect([...objects.graphObjects].map(([id, { type }]) => `${id}: ${type}`)).toEqual([
      'a: throttle-group',
      'b: throttle-group',
      'c: throttle-group',
      'd: throttle-group',
    ]);
  });

  it.each([
    [
      'x-iops-total=100,x-iops-read=10',
      'bps/iops/max total values and read/write values cannot be used at the same time',
    ],
    ['x-iops-total=1000000000000001', 'bps/iops/max values must be within [0, 1000000000000000]'],
    ['limits.iops-total=-1', 'bps/iops/max values must be within [0, 1000000000000000]'],
    ['x-iops-total=-1', 'Property values cannot be negative'],
    ['x-iops-total=1k', "Parameter 'x-iops-total' expects integer"],
    ['limits.iops-total=9223372036854775808', "Parameter 'limits.iops-total' expects integer"],
    ['x-foo=1', "Parameter 'x-foo' is unexpected"],
    ['limits.foo=1', "Parameter 'limits.foo' is unexpected"],
    ['limits.foo.x=1', "Parameters 'limits.foo.*' are unexpected"],
    ['foo.x=1', "Parameters 'foo.*' are unexpected"],
    ['limits=1', "Invalid parameter type for 'limits', expected: object"],
    ['limits.iops-read=1,limits=2', "Parameters 'limits.*' used inconsistently"],
    [
      'x-iops-total=1,x-iops-total-max=2,x-iops-total-max-length=4294967296',
      'x-iops-total-max-length value must be in therange [0, 4294967295]',
    ],
    [
      'limits.bps-total=1,limits.bps-total-max=10,limits.bps-total-max-length=4294967296',
      'bps-total-max-length value must be in the range [0, 4294967295]',
    ],
    ['limits.bps-total=1,limits.bps-total-max-length=-1', 'burst length set without burst rate'],
  ])('with %s are refused: %s', (properties, sentence) => {
    expect(group(properties)).toThrow(sentence);
  });

  it('share their ids with secrets', () => {
    const objects = new Objects();
    objects.add('secret,id=a,data=x');
    expect(() => objects.add('throttle-group,id=a')).toThrow(
      "attempt to add duplicate property 'a' to object (type 'container')",
    );
    expect(() => objects.add('throttle-group,id=1')).toThrow("Parameter 'id' expects an identifier");
    expect(() => objects.add('throttle-group')).toThrow("Parameter 'id' is missing");
  });

  it('list their properties', () => {
    const text = new Objects().add('throttle-group,help') ?? '';
    expect(text.split('\n').slice(0, 4)).toEqual([
      'throttle-group options:',
      '  limits=<ThrottleLimits>',
      '  x-bps-read-max-length=<int>',
      '  x-bps-read-max=<int>',
    ]);
    expect(text.split('\n')).toHaveLength(22);
  });
});
