import { describe, expect, it } from 'vitest';
import { ownCommands } from '../../../src/cli/fuzz/own-commands.ts';
import { type Filling, fill, parseCommand, parseCommandList, quoted } from '../../../src/cli/fuzz/template.ts';

const filling: Filling = {
  image: '/tmp/a b/image',
  format: 'qcow2',
  open: 'driver=qcow2',
  object: 'secret,id=secret',
  key: '/key',
  size: '512',
  offset: '0',
  length: '4',
  output: '/out',
  cowdisk: ['node', 'cowdisk.js'],
};
const filled = (text: string): string[] => fill(parseCommand(text), filling);

describe('a command', () => {
  it('is split into words as a shell does it', () => {
    expect(parseCommand(`a  'b c' "d \\" e" f\\ g ''`).words).toEqual(['a', 'b c', 'd " e', 'f g', '']);
    expect(parseCommand(`x'y'"z"`).words).toEqual(['xyz']);
  });

  it('has its placeholders filled in, and no word is split by what is filled in', () => {
    expect(filled('check -f $format $image')).toEqual(['check', '-f', 'qcow2', '/tmp/a b/image']);
    expect(filled('x=$' + '{format}y $$HOME $cowdisk info')).toEqual([
      'x=qcow2y',
      '$HOME',
      'node',
      'cowdisk.js',
      'info',
    ]);
    expect(filled("io -c 'read $offset $length'")).toEqual(['io', '-c', 'read 0 4']);
  });

  it.each([
    ['', 'one word at least'],
    ["a 'b", "a ' without its end"],
    ['a $imgae', 'there is no $imgae; there are $image, $format'],
  ])('%j is refused before anything is run', (text, message) => {
    expect(() => parseCommand(text)).toThrow(message);
  });

  it('comes from a list as well', () => {
    const list = parseCommandList('["a $image", ["b c", "$format"]]', 'x.json');
    expect(list.map((command) => fill(command, filling))).toEqual([
      ['a', '/tmp/a b/image'],
      ['b c', 'qcow2'],
    ]);
    expect(list[1]?.text).toBe(`'b c' '$format'`);
    for (const text of ['{', '{}', '[]', '[1]', '[["a", 1]]'])
      expect(() => parseCommandList(text, 'x.json')).toThrow('x.json: ');
  });

  it('is shown as a shell would take it', () => {
    expect(quoted("it's")).toBe(`'it'\\''s'`);
    expect(quoted('a/b-c.d')).toBe('a/b-c.d');
  });

  it('of another program keeps its name, whatever is in it', () => {
    expect(fill(ownCommands('/opt/$x/qemu-img')[0] as never, filling)[0]).toBe('/opt/$x/qemu-img');
    expect(ownCommands(undefined).length).toBeGreaterThan(ownCommands('qemu-img').length);
  });
});
