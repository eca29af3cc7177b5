import { describe, expect, it } from 'vitest';
import { cliName, type OptionSchema } from '../../src/base/options.ts';
import {
  createOptionHelp,
  createOptionsOf,
  describeCreateOptions,
  driverOptions,
  readCreateOptions,
  requireMeasureSecret,
} from '../../src/cli/create-options.ts';
import { parseOptionList } from '../../src/cli/option-list.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { raw } from '../../src/formats/raw/driver.ts';

const table = createOptionsOf(qcow2, true);
const silent = { warn: (): void => {} };

function read(list: string): ReturnType<typeof readCreateOptions> {
  return readCreateOptions(parseOptionList(list), table, silent, true);
}

describe('create options under their command line names', () => {
  it('list every option of the driver, once', () => {
    for (const driver of [qcow2, raw]) {
      const names = createOptionsOf(driver, true).map((option) => option.name);
      expect(new Set(names).size).toBe(names.length);
      for (const [key, def] of Object.entries(driver.createOptions as OptionSchema)) {
        expect(names).toContain(cliName(key, def));
      }
    }
  });

  it("print in QEMU's order with QEMU's defaults, whatever order they were given in", () => {
    expect(describeCreateOptions(table, read('nocow=on,compat=v3,size=1k,backing_file=a,,b,lazy_refcounts=yes'))).toBe(
      'cluster_size=65536 extended_l2=off compression_type=zlib size=1024 compat=v3 backing_file=a,,b ' +
        'lazy_refcounts=yes refcount_bits=16 nocow=on',
    );
  });

  it('print numbers as C prints signed ones', () => {
    expect(describeCreateOptions(table, read('refcount_bits=-1,size=8E'))).toMatch(
      /size=-9223372036854775808 .*refcount_bits=-1$/,
    );
  });

  it('take the last of equal names', () => {
    expect(read('compat=v3,compat=v2').get('compat')?.text).toBe('v2');
  });

  it.each([
    ['foo=1', "Invalid parameter 'foo'"],
    ['clustersize=1', "Invalid parameter 'clustersize'; did you mean 'cluster_size'?"],
    ['cluster_size=4x', "Parameter 'cluster_size' expects a non-negative number below 2^64"],
    ['cluster_size', "Parameter 'cluster_size' expects a non-negative number below 2^64"],
    ['size=16E', "Value '16E' is out of range for parameter 'size'"],
    ['refcount_bits=8k', "Parameter 'refcount_bits' expects a number"],
    ['refcount_bits=99999999999999999999', "Value '99999999999999999999' is too large for parameter 'refcount_bits'"],
    ['extended_l2=maybe', "Parameter 'extended_l2' expects 'on' or 'off'"],
  ])('refuse %s', (list, message) => {
    expect(() => read(list)).toThrow(message);
  });

  it('reach the driver by the names of its schema, without those that the caller handles', () => {
    const values = read('cluster_size=4k,lazy_refcounts=on,size=1M,backing_file=x,nocow=on,compat=0.10,encryption=off');
    expect(driverOptions(qcow2, values)).toEqual({
      clusterSize: 4096,
      lazyRefcounts: true,
      compat: '0.10',
      encryption: false,
    });
  });

  it('become numbers that every driver refuses when no number can hold them', () => {
    expect(driverOptions(qcow2, read('refcount_bits=-1'))).toEqual({ refcountBits: Number.MAX_SAFE_INTEGER });
  });

  it('of an image whose LUKS header is to be measured name a secret that is there, as qemu-img wants it', () => {
    const measure = (list: string): void => requireMeasureSecret(read(list), { s0: 'secret' });
    expect(() => measure('encryption=on')).not.toThrow();
    expect(() => measure('encrypt.format=luks,encrypt.key-secret=s0')).not.toThrow();
    expect(() => measure('encrypt.format=luks')).toThrow("Parameter 'encrypt.key-secret' is required for cipher");
    expect(() => measure('encrypt.format=luks,encrypt.key-secret=s1')).toThrow("No secret with id 's1'");
  });

  it('are listed in alphabetical order, with the options of the file when there is one', () => {
    expect(createOptionHelp(raw, false)).toBe(
      'Supported raw options:\n  size=<size>            - Virtual disk size\n\n' +
        'The protocol level may support further options.\nSpecify the target filename to include those options.\n',
    );
    expect(createOptionHelp(raw, true).split('\n')).toHaveLength(6);
  });
});
