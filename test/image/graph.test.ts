/** Graphs described by options: what a description says, and what is opened by it. */
import { writeFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { defineOptions, int } from '../../src/base/options.ts';
import { defineFilter } from '../../src/core/filter.ts';
import { backingChain } from '../../src/core/node.ts';
import { FilterNode } from '../../src/filters/filter-node.ts';
import { ALL_FORMATS } from '../../src/formats/all.ts';
import { createImage } from '../../src/image/create.ts';
import { type GraphOptions, graphName, NodeSpec } from '../../src/image/graph.ts';
import type { Image } from '../../src/image/image.ts';
import { type OpenImageOptions, openImage } from '../../src/image/open.ts';
import { fileProtocol } from '../../src/storage/file.ts';
import { scratch } from '../support/scratch.ts';

const KiB = 1024;
const path = scratch();
const raw = path('a.raw');
const other = path('other.raw');
const base = path('base.qcow2');
const top = path('top.qcow2');

/** A filter with every kind of option; it counts what is asked of it. */
const seen: string[] = [];
const counting = defineFilter({
  name: 'counting',
  summary: 'for these tests',
  children: [
    { name: 'file', role: 'file', probed: 'as-filter' },
    { name: 'others', role: 'extent', probed: 'always', list: true },
  ],
  openOptions: defineOptions({}),
  listOptions: { rule: defineOptions({ sector: int({ help: 'for these tests' }) }) },
  parseName: (rest) => ({ 'file.filename': rest }),
  shortName: (options, child) =>
    options.size === 0 && child('file') !== undefined ? `counting:${child('file')}` : undefined,
  open: async (context, _options, groups) => {
    const [inner] = context.children('file');
    if (inner === undefined) throw new Error('no child');
    seen.push(`${context.name} ${context.children('others').length} ${groups.rule.length}`);
    return new FilterNode(context.name, 'counting', inner);
  },
});

const drivers = { formats: ALL_FORMATS, protocols: [fileProtocol], filters: [counting] };

function open(options: GraphOptions | string, more: Partial<OpenImageOptions> = {}): Promise<Image> {
  const name = typeof options === 'string' ? options : graphName(options);
  return openImage(name, { ...drivers, references: 'allow', ...more });
}

/** First byte of the disk. */
async function first(options: GraphOptions | string, more: Partial<OpenImageOptions> = {}): Promise<number> {
  await using image = await open(options, more);
  return (await image.read(0, 1))[0] as number;
}

beforeAll(async () => {
  writeFileSync(raw, new Uint8Array(256 * KiB).fill(1));
  writeFileSync(other, new Uint8Array(256 * KiB).fill(2));
  await createImage(base, { ...drivers, format: 'qcow2', size: 256 * KiB });
  await using image = await open(base, { readOnly: false });
  await image.write(0, new Uint8Array(64 * KiB).fill(3));
  await createImage(top, { ...drivers, format: 'qcow2', backing: { name: base, format: 'qcow2' } });
});

describe('a description', () => {
  it('is the same flat and nested, with lists by number', () => {
    for (const text of ['{"a":{"b":1,"c":[true,null]}}', '{"a.b":1,"a.c.0":true,"a.c":{"1":null}}']) {
      const spec = NodeSpec.parse(`json:${text}`);
      expect([spec.text('a.b'), spec.text('a.c.0'), spec.isNull('a.c.1')]).toEqual(['1', 'on', true]);
    }
  });

  it('tells children from options, and from what every node has', () => {
    const spec = NodeSpec.parse(
      'json:{"driver":"x","file":{"filename":"f"},"kid":"name","none":null,"read-only":true,"o":1}',
    );
    expect(spec.child('kid')).toEqual({ node: 'name' });
    expect(spec.child('none')).toBe('none');
    expect(spec.child('nobody')).toBeUndefined();
    expect([...spec.own(['file', 'kid', 'none']).keys()]).toEqual(['o']);
    expect(spec.general()).toMatchObject({ readOnly: true, detectZeroes: 'off', discard: undefined });
  });

  it.each([
    ['json:{', 'graph.json'],
    ['json: ', 'graph.json-empty'],
    ['json:[]', 'graph.json-object'],
    ['json:null', 'graph.json-object'],
    [`json:${'{"a":'.repeat(3000)}1${'}'.repeat(3000)}`, 'graph.json-depth'],
  ])('that is none is refused: %.20s', (name, reason) => {
    expect(() => NodeSpec.parse(name)).toThrow(expect.objectContaining({ reason }));
  });
});

describe('a graph', () => {
  it('is not opened by name where the caller has not asked for graphs', async () => {
    const name = graphName({ driver: 'raw', file: { driver: 'file', filename: raw } });
    await expect(openImage(name, { formats: ALL_FORMATS, protocols: [fileProtocol] })).rejects.toMatchObject({
      reason: 'protocol.unknown',
    });
    await expect(
      openImage(`counting:${raw}`, { formats: ALL_FORMATS, protocols: [fileProtocol] }),
    ).rejects.toMatchObject({ reason: 'protocol.unknown' });
  });

  it('never comes out of an image', async () => {
    const evil = path('evil.qcow2');
    const name = graphName({ driver: 'raw', file: { driver: 'file', filename: raw } });
    await createImage(evil, {
      ...drivers,
      format: 'qcow2',
      size: 64 * KiB,
      backing: { name, format: 'raw' },
      backingUnchecked: true,
    }).catch(() => undefined);
    await createImage(evil, { ...drivers, format: 'qcow2', backing: { name: raw, format: 'raw' } });
    await using image = await open(evil, { readOnly: false });
    for (const recorded of [name, `counting:${raw}`]) {
      await image.node.changeBacking({ name: recorded, format: 'raw' });
      await expect(open(evil)).rejects.toMatchObject({ reason: /reference.json|image.backing|protocol.unknown/ });
    }
  });

  it('puts other files in the place of recorded ones, or none', async () => {
    expect(await first(top)).toBe(3);
    const file = { driver: 'file', filename: top };
    expect(await first({ driver: 'qcow2', file, backing: null })).toBe(0);
    expect(await first({ driver: 'qcow2', file, backing: { driver: 'raw', file: { filename: other } } })).toBe(2);
    expect(await first({ driver: 'qcow2', file, backing: { driver: 'raw' } })).toBe(0x51);
    expect(
      await first({ driver: 'qcow2', file: { filename: base }, 'backing.driver': 'raw', 'backing.file.filename': raw }),
    ).toBe(3);
  });

  it('opens what the caller names although the policy denies what the image names', async () => {
    const file = { driver: 'file', filename: top };
    const backing = { driver: 'raw', file: { driver: 'file', filename: other } };
    expect(await first({ driver: 'qcow2', file, backing }, { references: 'deny' })).toBe(2);
    await expect(first({ driver: 'qcow2', file }, { references: 'deny' })).rejects.toMatchObject({
      code: 'REFERENCE_DENIED',
    });
  });

  it('is a loop where a disk stands over itself', async () => {
    const file = { driver: 'file', filename: top };
    await expect(
      open({ driver: 'qcow2', file, backing: { driver: 'qcow2', file: { filename: top } } }),
    ).rejects.toMatchObject({ reason: 'chain.cycle' });
  });

  it('can refer to nodes that stand already, once under each name', async () => {
    const file = { driver: 'file', filename: raw, 'node-name': 'disk' };
    const options = { driver: 'counting', file: { driver: 'raw', file }, others: [{ driver: 'raw', file: 'disk' }] };
    await using image = await open(options);
    expect((await image.read(0, 1))[0]).toBe(1);
    expect(seen.at(-1)).toMatch(/ 1 0$/);
    await expect(open({ driver: 'raw', file: 'nobody' })).rejects.toMatchObject({ reason: 'graph.reference' });
    await expect(open({ driver: 'raw', 'node-name': 'disk', file })).rejects.toMatchObject({
      reason: 'graph.node-name-twice',
    });
  });

  it('has filters anywhere: at the top, under a format, under another filter, by name or by options', async () => {
    const chain = {
      driver: 'counting',
      file: { driver: 'counting', file: { driver: 'qcow2', file: { filename: top } } },
    };
    await using image = await open(chain);
    expect([image.format, (await image.read(0, 1))[0]]).toEqual(['counting', 3]);
    const extents = [];
    for await (const extent of image.extents()) extents.push([extent.depth, extent.length, extent.present]);
    expect(extents).toEqual([
      [1, 64 * KiB, true],
      [1, 192 * KiB, false],
    ]);
    await using named = await open(`counting:${top}`);
    expect([named.format, named.name]).toEqual(['qcow2', `counting:${top}`]);
    expect(backingChain(named.node)).toHaveLength(2);
  });

  it('passes numbered groups to a filter, and refuses what no group has', async () => {
    await expect(
      open({ driver: 'counting', rule: [{ foo: 1 }], file: { driver: 'file', filename: raw } }),
    ).rejects.toMatchObject({ reason: 'graph.option', details: { name: 'foo' } });
  });

  it('marks written zeros where it is told to', async () => {
    for (const [mode, present] of [
      ['off', true],
      ['on', false],
    ] as const) {
      const name = path(`zeroes-${mode}.qcow2`);
      await createImage(name, { ...drivers, format: 'qcow2', size: 256 * KiB });
      const options = { driver: 'qcow2', 'detect-zeroes': mode, file: { driver: 'file', filename: name } };
      await using image = await open(options, { readOnly: false });
      await image.write(0, new Uint8Array(64 * KiB));
      const data = [];
      for await (const extent of image.extents({ length: 64 * KiB })) data.push(extent.data);
      expect(data).toEqual([present]);
    }
  });

  it('is read-only where it says so, and only falls back to that where it is allowed to', async () => {
    const file = { driver: 'file', filename: raw };
    const write = { readOnly: false } as const;
    await expect(open({ driver: 'raw', 'read-only': true, file }, write)).rejects.toMatchObject({ code: 'READ_ONLY' });
    await expect(open({ driver: 'raw', file: { ...file, 'read-only': true } }, write)).rejects.toMatchObject({
      code: 'READ_ONLY',
    });
    await using image = await open({ driver: 'raw', 'read-only': true, file });
    expect(image.readOnly).toBe(true);
  });

  it('can be opened anew for writing', async () => {
    const name = path('anew.qcow2');
    await createImage(name, { ...drivers, format: 'qcow2', size: 64 * KiB });
    await using image = await open({
      driver: 'qcow2',
      file: { driver: 'counting', file: { driver: 'file', filename: name } },
    });
    await image.reopen({ readOnly: false });
    await image.write(0, new Uint8Array(512).fill(7));
    await image.reopen({ readOnly: true });
    expect((await image.read(0, 1))[0]).toBe(7);
  });
});

describe('the name that is shown', () => {
  const window = { driver: 'raw', offset: 4096, size: 8192 } as const;
  it.each<readonly [string, GraphOptions, boolean]>([
    ['a plain format', { driver: 'qcow2', file: { driver: 'file', filename: top } }, true],
    ['a format by probing', { file: { driver: 'file', filename: top } }, true],
    ['options that change no content', { driver: 'qcow2', 'lazy-refcounts': true, 'file.filename': top }, true],
    ['a window', { ...window, file: { driver: 'file', filename: raw } }, false],
    [
      'a window in a window',
      { ...window, size: 4096, file: { ...window, file: { driver: 'file', filename: raw } } },
      false,
    ],
    [
      'another backing file',
      { driver: 'qcow2', 'file.filename': top, backing: { driver: 'raw', file: { driver: 'file', filename: raw } } },
      false,
    ],
    ['no backing file', { driver: 'qcow2', 'file.filename': top, backing: null }, false],
    ['a filter at the top', { driver: 'counting', file: { driver: 'file', filename: raw } }, true],
    [
      'a filter with groups',
      {
        driver: 'counting',
        rule: [{ sector: 1 }],
        others: [{ file: { driver: 'file', filename: raw } }],
        file: { driver: 'raw', file: { driver: 'file', filename: raw } },
      },
      false,
    ],
  ])('leads back to the same graph: %s', async (_, options, plain) => {
    await using image = await open(options);
    expect(image.name.startsWith('json:')).toBe(!plain);
    await using again = await open(image.name);
    expect(again.name).toBe(image.name);
    expect([again.format, again.virtualSize]).toEqual([
      image.format === 'counting' && plain ? 'raw' : image.format,
      image.virtualSize,
    ]);
    expect(await again.read(0, 4096)).toEqual(await image.read(0, 4096));
    expect(image.location).toBe(image.name.includes('top') ? top : raw);
  });
});
