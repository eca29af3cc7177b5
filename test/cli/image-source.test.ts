import { describe, expect, it } from 'vitest';
import { changedSource, parseImageSource } from '../../src/cli/image-source.ts';

const plain = { imageOpts: false, format: undefined };
const options = { imageOpts: true, format: undefined };

describe('what an image argument means', () => {
  it('is a name as it stands, with the format given apart', () => {
    expect(parseImageSource('file:a.raw', plain)).toEqual({
      label: 'file:a.raw',
      name: 'file:a.raw',
      format: undefined,
    });
    expect(parseImageSource('json:{}', { ...plain, format: 'raw' })).toMatchObject({ name: 'json:{}', format: 'raw' });
  });

  it('is a description where options are asked for, a doubled comma being one', () => {
    expect(parseImageSource('driver=qcow2,file.driver=file,file.filename=a,,b', options)).toEqual({
      label: 'driver=qcow2,file.driver=file,file.filename=a,,b',
      name: 'json:{"file.driver": "file", "file.filename": "a,b", "driver": "qcow2"}',
      format: undefined,
    });
  });

  it('takes a first word alone for the name of a node', () => {
    expect(parseImageSource('a.qcow2,driver=raw', options).name).toBe('json:{"driver": "raw", "file": "a.qcow2"}');
    expect(parseImageSource('driver=raw,nocache', options).name).toBe('json:{"driver": "raw", "cache": "off"}');
  });

  it('refuses a format beside options', () => {
    expect(() => parseImageSource('a', { imageOpts: true, format: 'raw' })).toThrow(
      '--image-opts and --format are mutually exclusive',
    );
  });

  it('can be changed later, whether it was a name or a description', () => {
    const changes = [{ name: 'lazy-refcounts', value: 'on' }];
    const named = parseImageSource('a,b', { ...plain, format: 'qcow2' });
    expect(JSON.parse(changedSource(named, changes).name.slice(5))).toEqual({
      driver: 'qcow2',
      'file.filename': 'a,b',
      'lazy-refcounts': 'on',
    });
    const described = parseImageSource('driver=qcow2,file.filename=x,lazy-refcounts=off', options);
    expect(JSON.parse(changedSource(described, changes).name.slice(5))).toMatchObject({ 'lazy-refcounts': 'on' });
  });
});
