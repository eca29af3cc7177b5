/** Every format of the project, and the one that lives in the tests, against the format contract. */
import { createCodecs } from '../../src/codec/create.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { createByDriver } from '../../src/testing/format-suite.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { bitmap } from '../support/bitmap-driver.ts';
import { formatSuite } from './format.suite.ts';

const codecs = createCodecs({ workers: 0 });
const ABLE = { backing: true, compress: true, discard: 'zeroes' } as const;

formatSuite({
  name: 'bitmap',
  abilities: ABLE,
  unit: 1024,
  create: createByDriver({
    driver: bitmap,
    codecs,
    cacheBytes: 0,
    createOptions: (backing) => ({ hasBacking: backing !== undefined }),
  }),
});

formatSuite({
  name: 'bitmap over a late store',
  abilities: ABLE,
  unit: 2048,
  seed: 2,
  create: createByDriver({
    driver: bitmap,
    codecs,
    cacheBytes: 0,
    createOptions: (backing) => ({ unit: 2048, hasBacking: backing !== undefined }),
    wrap: (file) => new LateStore({ seed: 3, piecesPerTurn: 64 }, file),
  }),
});

formatSuite({
  name: 'bitmap with a transform',
  abilities: ABLE,
  unit: 1024,
  seed: 3,
  create: createByDriver({
    driver: bitmap,
    codecs,
    openOptions: { transform: 'host' },
    createOptions: (backing) => ({ hasBacking: backing !== undefined }),
  }),
});

formatSuite({
  name: 'raw',
  abilities: { resize: 'any', discard: 'hint' },
  unit: 4096,
  largeSize: 2 ** 42,
  create: createByDriver({ driver: raw, codecs }),
});

formatSuite({
  name: 'qcow2',
  abilities: { ...ABLE, resize: 'grow' },
  unit: 65536,
  largeSize: 2 ** 42,
  create: createByDriver({
    driver: qcow2,
    codecs,
    createOptions: (backing) => (backing === undefined ? {} : { backingFile: backing, backingFmt: 'raw' }),
  }),
});

formatSuite({
  name: 'qcow2 with small clusters over a late store',
  abilities: { ...ABLE, resize: 'grow' },
  unit: 512,
  seed: 2,
  create: createByDriver({
    driver: qcow2,
    codecs,
    cacheBytes: 0,
    createOptions: (backing) => ({
      clusterSize: 512,
      ...(backing === undefined ? {} : { backingFile: backing, backingFmt: 'raw' }),
    }),
    wrap: (file) => new LateStore({ seed: 4, piecesPerTurn: 64 }, file),
  }),
});
