/** What names inside images mean, and who may be followed. */
import { describe, expect, it } from 'vitest';
import type { Reference } from '../../src/core/format.ts';
import type { ProtocolDriver } from '../../src/core/protocol.ts';
import {
  decideReference,
  protocolOf,
  protocolPrefix,
  type ReferencePolicy,
  resolveReference,
} from '../../src/image/references.ts';
import { MemoryFiles } from './support/memory-protocol.ts';

const { protocol } = new MemoryFiles();
const nbd: ProtocolDriver = { ...protocol, name: 'nbd', schemes: ['nbd', 'nbds'] };
const protocols = [protocol, nbd];

function reference(name: string, role: Reference['role'] = 'backing'): Reference {
  return { role, name, readOnly: true };
}

describe('a protocol prefix', () => {
  it.each([
    ['nbd:localhost:10809', 'nbd'],
    ['nbd://host/export', 'nbd'],
    ['json:{"driver":"qcow2"}', 'json'],
    ['file:a.raw', 'file'],
    ['nosuch:a', 'nosuch'],
    ['a:b/c', 'a'],
    ['c:disk.raw', 'c'],
  ])('is found in %s', (name, prefix) => {
    expect(protocolPrefix(name)).toBe(prefix);
  });

  it.each(['a.raw', '/x/a:b', './nbd:x', 'dir/a:b', ':x', 'C:\\vm\\a.raw', 'd:/vm/a.raw', ''])(
    'is not there in %s',
    (name) => {
      expect(protocolPrefix(name)).toBeUndefined();
    },
  );

  it('chooses the protocol; names without one go to the first', () => {
    expect(protocolOf('nbds://h', protocols)).toBe(nbd);
    expect(protocolOf('a.raw', protocols)).toBe(protocol);
    expect(protocolOf('C:\\a.raw', protocols)).toBe(protocol);
    expect(() => protocolOf('nosuch:a', protocols)).toThrow(
      expect.objectContaining({ reason: 'protocol.unknown', details: { name: 'nosuch:a', protocol: 'nosuch' } }),
    );
    expect(() => protocolOf('a', [])).toThrow(expect.objectContaining({ reason: 'protocol.none' }));
  });
});

describe('a name inside an image', () => {
  it('is relative to the directory of that image', () => {
    expect(resolveReference(reference('b.qcow2'), 'dir/a.qcow2', protocols)).toEqual({
      protocol,
      resolved: 'dir/b.qcow2',
    });
    expect(resolveReference(reference('/x/b.qcow2'), 'dir/a.qcow2', protocols).resolved).toBe('/x/b.qcow2');
    expect(resolveReference(reference('nbd:h'), 'dir/a.qcow2', protocols)).toEqual({
      protocol: nbd,
      resolved: 'nbd:h',
    });
  });

  it('is never options: json: is refused for backing files', () => {
    expect(() => resolveReference(reference('json:{"driver":"raw"}'), 'a', protocols)).toThrow(
      expect.objectContaining({ code: 'REFERENCE_DENIED', reason: 'reference.json' }),
    );
  });

  it('is always a plain file name for data files, whatever it looks like', () => {
    for (const name of ['json:{"driver":"nbd"}', 'nbd:evil:1', 'memory:x']) {
      const target = resolveReference(reference(name, 'data'), 'dir/a.qcow2', protocols);
      expect(target).toEqual({ protocol, resolved: `dir/./${name}` });
      expect(protocolPrefix(target.resolved)).toBeUndefined();
    }
    expect(resolveReference(reference('nbd:evil', 'data'), 'a.qcow2', protocols).resolved).toBe('./nbd:evil');
  });

  it.each(['', 'a\0b'])('cannot be %j', (name) => {
    expect(() => resolveReference(reference(name), 'a', protocols)).toThrow(
      expect.objectContaining({ reason: 'reference.name' }),
    );
  });
});

describe('the policy', () => {
  const asked = (name: string) => ({ ...reference(name), resolved: `dir/${name}`, from: 'dir/a.qcow2' });
  const denied = expect.objectContaining({ code: 'REFERENCE_DENIED', reason: 'reference.denied' });

  it('deny refuses, says who refers to what, and how to allow it', () => {
    expect(() => decideReference('deny', asked('../b'))).toThrow(denied);
    expect(() => decideReference('deny', asked('../b'))).toThrow(/dir\/a\.qcow2.*\.\.\/b.*references: 'allow'/);
  });

  it('allow opens, layer-only leaves the file alone', () => {
    expect(decideReference('allow', asked('/etc/passwd'))).toBe('open');
    expect(decideReference('layer-only', asked('/etc/passwd'))).toBe('leave');
  });

  it.each(['b.qcow2', 'b c', '.hidden', 'a..b'])('same-directory opens %s', (name) => {
    expect(decideReference('same-directory', asked(name))).toBe('open');
  });

  it.each(['../b', 'sub/b', '/b', 'sub\\b', '\\b', 'nbd:b', 'C:b', 'c:\\b', '..'])(
    'same-directory refuses %s',
    (name) => {
      expect(() => decideReference('same-directory', asked(name))).toThrow(denied);
    },
  );

  it('a function is told of the resolved name and decides', () => {
    const told: unknown[] = [];
    const policy: ReferencePolicy = (question) => {
      told.push(question);
      return question.name === 'good';
    };
    expect(decideReference(policy, asked('good'))).toBe('open');
    expect(() => decideReference(policy, asked('bad'))).toThrow(denied);
    expect(told[0]).toMatchObject({ role: 'backing', name: 'good', resolved: 'dir/good', from: 'dir/a.qcow2' });
  });
});
