import { describe, expect, expectTypeOf, it } from 'vitest';
import {
  bool,
  choice,
  cliName,
  defineOptions,
  formatOptionHelp,
  int,
  nearestName,
  type OptionsOf,
  parseOptions,
  resolveOptions,
  size,
  splitOptionString,
  text,
} from '../../src/base/options.ts';

const schema = defineOptions({
  clusterSize: size({
    default: 65536,
    min: 512,
    max: 2 * 1024 * 1024,
    powerOfTwo: true,
    help: 'qcow2 cluster size',
    reason: 'q.cluster',
  }),
  preallocation: choice(['off', 'metadata', 'full'], { default: 'off', help: 'preallocation mode' }),
  compat: choice(['v2', 'v3'], { help: 'version', synonyms: { '0.10': 'v2', '1.1': 'v3' } }),
  backingFile: text({ help: 'base image' }),
  lazyRefcounts: bool({ default: false, help: 'postpone' }),
  refcountBits: int({ default: 16, min: 1, max: 64, help: 'width' }),
  format: text({ cli: 'backing_fmt', help: 'format' }),
});

const option = (reason: string): unknown => expect.objectContaining({ code: 'OPTION', reason });

describe('resolving options', () => {
  it('fills in defaults and keeps what was given, with the types of the schema', () => {
    const resolved = resolveOptions(schema, { clusterSize: 4096, compat: 'v3' });
    expect(resolved).toEqual({
      clusterSize: 4096,
      preallocation: 'off',
      compat: 'v3',
      backingFile: undefined,
      lazyRefcounts: false,
      refcountBits: 16,
      format: undefined,
    });
    expectTypeOf<OptionsOf<typeof schema>['clusterSize']>().toEqualTypeOf<number>();
    expectTypeOf<OptionsOf<typeof schema>['backingFile']>().toEqualTypeOf<string | undefined>();
    expectTypeOf<OptionsOf<typeof schema>['preallocation']>().toEqualTypeOf<'off' | 'metadata' | 'full'>();
  });

  it('takes undefined for not given, and synonyms for what they mean', () => {
    expect(resolveOptions(schema, { clusterSize: undefined }).clusterSize).toBe(65536);
    expect(resolveOptions(schema, { compat: '0.10' as 'v2' }).compat).toBe('v2');
  });

  it.each([
    [{ clusterSize: 256 }, 'q.cluster'],
    [{ clusterSize: 4 * 1024 * 1024 }, 'q.cluster'],
    [{ clusterSize: 3072 }, 'q.cluster'],
    [{ clusterSize: 4096.5 }, 'q.cluster'],
    [{ clusterSize: -4096 }, 'q.cluster'],
    [{ clusterSize: '4096' }, 'q.cluster'],
    [{ preallocation: 'some' }, 'option.choice'],
    [{ preallocation: 1 }, 'option.choice'],
    [{ lazyRefcounts: 'on' }, 'option.bool'],
    [{ backingFile: 5 }, 'option.text'],
    [{ refcountBits: 65 }, 'option.int'],
    [{ refcountBits: 0 }, 'option.int'],
  ])('refuses %j', (input, reason) => {
    expect(() => resolveOptions(schema, input as object)).toThrow(option(reason));
  });

  it('names the nearest option when one is unknown', () => {
    expect(() => resolveOptions(schema, { clusterSise: 1 } as object)).toThrow(/unknown option 'clusterSise'/);
    expect(() => parseOptions(schema, [['cluster_sise', '1']])).toThrow(
      expect.objectContaining({
        reason: 'option.unknown',
        message: "unknown option 'cluster_sise'; did you mean 'cluster_size'?",
        details: { name: 'cluster_sise', nearest: 'cluster_size' },
      }),
    );
    expect(() => parseOptions(schema, [['zzz', '1']])).toThrow("unknown option 'zzz'");
  });
});

describe('options on the command line', () => {
  it('have snake case names unless the schema says otherwise', () => {
    expect(cliName('clusterSize', schema.clusterSize)).toBe('cluster_size');
    expect(cliName('format', schema.format)).toBe('backing_fmt');
  });

  it('are split at commas; doubled ones belong to the value', () => {
    expect(splitOptionString('a=1,b=x,,y,c,nod,no,e=')).toEqual([
      ['a', '1'],
      ['b', 'x,y'],
      ['c', 'on'],
      ['d', 'off'],
      ['no', 'on'],
      ['e', ''],
    ]);
    expect(splitOptionString('')).toEqual([]);
    expect(splitOptionString('a=b=c')).toEqual([['a', 'b=c']]);
    expect(splitOptionString('nofile=x')).toEqual([['nofile', 'x']]);
  });

  it('are parsed by kind, the last of equal ones wins, and defaults stay out', () => {
    const parsed = parseOptions(
      schema,
      splitOptionString('cluster_size=4k,cluster_size=8K,lazy_refcounts,backing_fmt=raw,refcount_bits=0x10,compat=1.1'),
    );
    expect(parsed).toEqual({ clusterSize: 8192, lazyRefcounts: true, format: 'raw', refcountBits: 16, compat: 'v3' });
  });

  it.each([
    [['cluster_size', '4Q'], 'option.size-text'],
    [['cluster_size', '-1'], 'option.size-range'],
    [['cluster_size', '3K'], 'q.cluster'],
    [['refcount_bits', '1.5'], 'option.int-text'],
    [['refcount_bits', ''], 'option.int-text'],
    [['lazy_refcounts', 'yes'], 'option.bool'],
    [['preallocation', 'full '], 'option.choice'],
  ] as const)('%j is refused', (pair, reason) => {
    expect(() => parseOptions(schema, [pair])).toThrow(option(reason));
  });

  it('are listed in alphabetical order with their types', () => {
    expect(formatOptionHelp(schema)).toEqual([
      '  backing_file=<str>  - base image',
      '  backing_fmt=<str>  - format',
      '  cluster_size=<size>  - qcow2 cluster size',
      '  compat=<str>  - version',
      '  lazy_refcounts=<bool (on/off)>  - postpone',
      '  preallocation=<str>  - preallocation mode',
      '  refcount_bits=<num>  - width',
    ]);
  });
});

it('the nearest name is within a few edits', () => {
  const names = ['cluster_size', 'compat', 'preallocation'];
  expect(nearestName('clustersize', names)).toBe('cluster_size');
  expect(nearestName('compact', names)).toBe('compat');
  expect(nearestName('x', names)).toBeUndefined();
  expect(nearestName('completely_else', names)).toBeUndefined();
});
