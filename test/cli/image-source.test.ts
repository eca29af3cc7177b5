import { describe, expect, it } from 'vitest';
import { parseImageSource } from '../../src/cli/image-source.ts';

const plain = { imageOpts: false, format: undefined };
const options = { imageOpts: true, format: undefined };

describe('what an image argument means', () => {
  it('takes a plain name as it is, with or without the prefix of files', () => {
    expect(parseImageSource('a.raw', plain)).toMatchObject({ name: 'a.raw', label: 'a.raw', format: undefined });
    expect(parseImageSource('file:a.raw', plain)).toMatchObject({ name: 'a.raw', label: 'file:a.raw' });
  });

  it('keeps the prefix where the rest would read as another protocol', () => {
    expect(parseImageSource('file:a:b', plain).name).toBe('file:a:b');
    expect(parseImageSource('file:./a:b', plain).name).toBe('./a:b');
  });

  it('reads driver and file from options and from JSON, dotted or nested', () => {
    for (const source of [
      parseImageSource('driver=qcow2,file.driver=file,file.filename=a,,b', options),
      parseImageSource('json:{"driver":"qcow2","file":{"driver":"file","filename":"a,b"}}', plain),
      parseImageSource('json:{"driver":"qcow2","file.filename":"a,b"}', plain),
    ]) {
      expect(source).toMatchObject({ name: 'a,b', format: 'qcow2', shown: undefined });
      expect([...source.options]).toEqual([]);
    }
  });

  it('shows options that change what is read, in QEMU order, as they were written', () => {
    const source = parseImageSource('driver=raw,offset=1k,size=2k,file.filename=a.raw', options);
    expect(source.shown).toBe(
      'json:{"offset": "1k", "driver": "raw", "size": "2k", "file": {"driver": "file", "filename": "a.raw"}}',
    );
    expect([...source.options]).toEqual([
      ['offset', '1k'],
      ['size', '2k'],
    ]);
  });

  it.each([
    ['driver=cow,layout=v1-le32,tail=lenient,file.filename=old.cow', { layout: 'v1-le32', tail: 'lenient' }],
    [
      'driver=cow,layout=v3,bitmap-offset=4120,data-offset=4608,file.filename=old.cow',
      { layout: 'v3', 'data-offset': '4608' },
    ],
    ['driver=cow,ignore-mismatch=on,file.filename=old.cow', undefined],
    [
      'driver=luks,key-secret=s,file.filename=disk,header.driver=file,header.filename=h.luks',
      { 'key-secret': 's', header: 'h.luks' },
    ],
    ['driver=add-cow,file.filename=a.add-cow', undefined],
  ])('099: the name of %s leads back to the same image', (argument, shownOptions) => {
    const source = parseImageSource(argument, options);
    if (shownOptions === undefined) expect(source.shown).toBeUndefined();
    else {
      const again = parseImageSource(source.shown as string, plain);
      expect(again).toMatchObject({ name: source.name, format: source.format, shown: source.shown });
      expect(Object.fromEntries(again.options)).toEqual(Object.fromEntries(source.options));
      expect(Object.fromEntries(again.options)).toMatchObject(shownOptions);
    }
  });

  it('lets -f overrule the driver of a JSON name', () => {
    expect(parseImageSource('json:{"driver":"qcow2","file.filename":"a"}', { ...plain, format: 'raw' }).format).toBe(
      'raw',
    );
  });

  it.each([
    ['on', 'unmap'],
    ['unmap', 'unmap'],
    ['off', 'ignore'],
    ['ignore', 'ignore'],
  ])('takes discard=%s for %s, and no option of the format (Q-071)', (given, mode) => {
    const source = parseImageSource(`driver=qcow2,file.filename=a,discard=${given}`, options);
    expect(source).toMatchObject({ discard: mode, dataFile: undefined, options: new Map() });
  });

  it('takes the data file by name (M-24)', () => {
    const text = '{"driver":"qcow2","file":{"filename":"a"},"data-file":{"driver":"file","filename":"b"}}';
    expect(parseImageSource(`json:${text}`, plain)).toMatchObject({ name: 'a', dataFile: 'b', options: new Map() });
    expect(parseImageSource('driver=qcow2,file.filename=a,data-file.filename=b', options).dataFile).toBe('b');
  });

  it.each([
    ['a.qcow2', options, "Could not open 'a.qcow2': Cannot find device='a.qcow2' nor node-name='a.qcow2'"],
    ['filename=a', options, "Could not open 'filename=a': Must specify either driver or file"],
    ['driver=qcow2', options, `Could not open 'driver=qcow2': A block device must be specified for "file"`],
    ['driver=qcow2,file.driver=nbd,file.host=x', options, "driver 'nbd' below a format is not supported yet"],
    ['driver=file,filename=a', options, "driver 'file' without a format above it is not supported"],
    ['driver=raw,file.filename=a,file.foo=x', options, "Block protocol 'file' doesn't support the option 'foo'"],
    ['driver=raw,file.filename=', options, "The 'file' block driver requires a file name"],
    ['driver=qcow2,file.filename=a,discard=some', options, 'Invalid discard option'],
    ['driver=qcow2,file.filename=a,data-file.driver=nbd', options, "driver 'nbd' below a format is not supported yet"],
    ['driver=qcow2,file.filename=a,data-file.foo=1', options, "Block protocol 'file' doesn't support the option 'foo'"],
    ['json:{bad', plain, "Could not parse the JSON options: JSON parse error, invalid keyword 'bad'"],
    ['json:{', plain, 'Could not parse the JSON options: JSON parse error, premature EOI'],
    ['json:', plain, 'Could not parse the JSON options: Expecting a JSON value'],
    ['json:[]', plain, 'Invalid JSON object given'],
    ['a', { imageOpts: true, format: 'raw' }, '--image-opts and --format are mutually exclusive'],
  ])('refuses %s', (argument, choice, message) => {
    expect(() => parseImageSource(argument, choice)).toThrow(message);
  });
});
