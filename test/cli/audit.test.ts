/** `audit` as people use it, and over images of the real qemu-img: those have nothing but facts in them. */
import { execFileSync } from 'node:child_process';
import { readdirSync, truncateSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { MemorySink } from '../../src/cli/console.ts';
import { run } from '../../src/cli/main.ts';
import { auditImage, createImage } from '../../src/node.ts';
import { describeWithQemu, mustRun, secret } from '../crypto/qemu.ts';
import { rewritten, sound } from '../support/audit-cases.ts';
import { scratch } from '../support/scratch.ts';

const path = scratch();
const LONG = process.env['COWDISK_LONG'] === '1';

async function audit(...args: string[]) {
  const out = new MemorySink();
  const err = new MemorySink();
  const signal = new AbortController().signal;
  const status = await run({ calledAs: 'cowdisk', args: ['audit', ...args], out, err, env: {}, signal });
  return { status, out: out.text, err: err.text };
}

async function image(name: string, backing?: string): Promise<string> {
  const bytes = await sound();
  writeFileSync(path(name), backing === undefined ? bytes : rewritten(bytes, { backing, format: 'raw' }));
  return path(name);
}

describe('audit', () => {
  it('says that there is nothing', async () => {
    const name = await image('sound.qcow2');
    expect(await audit(name)).toEqual({ status: 0, out: `${name}: qcow2\n  nothing was found\n`, err: '' });
    expect(JSON.parse((await audit('--json', name)).out)).toEqual([
      { filename: name, format: 'qcow2', guessed: false, findings: [], more: {} },
    ]);
  });

  it('ends with a status of its own from the severity asked for', async () => {
    const name = await image('outside.qcow2', '/srv/base.raw');
    for (const [severity, status] of [
      ['info', 2],
      ['low', 2],
      ['medium', 2],
      ['high', 0],
      ['none', 0],
    ] as const) {
      expect(await audit('-q', `--fail-on=${severity}`, name)).toEqual({ status, out: '', err: '' });
    }
    expect((await audit(name)).status).toBe(2);
  });

  it('opens nothing that an image names, nor waits for it', async () => {
    const pipe = path('pipe');
    execFileSync('mkfifo', [pipe]);
    for (const backing of [pipe, path('missing'), 'nbd:unix:/nowhere', '/dev/stdin']) {
      const { status, out } = await audit(await image('naming.qcow2', backing));
      expect([backing, status]).toEqual([backing, 2]);
      expect(out).toContain(backing);
    }
  });

  it('does not wait for the file itself', async () => {
    const pipe = path('itself');
    execFileSync('mkfifo', [pipe]);
    expect(await audit(pipe)).toEqual({
      status: 1,
      out: '',
      err: `cowdisk: "${pipe}": is a pipe; only files and devices can be audited\n`,
    });
    expect((await audit(path('.'))).err).toContain('is a directory');
  });

  it('audits what it can read of several files', async () => {
    const name = await image('one.qcow2');
    const ended = await audit('--json', path('missing'), name);
    expect(ended.status).toBe(1);
    expect(ended.err).toBe(`cowdisk: could not open "${path('missing')}": no such file or directory\n`);
    expect(JSON.parse(ended.out)).toHaveLength(1);
  });

  it('prints no name of the image as it is', async () => {
    const name = await image('escape.qcow2', 'a\u001b]0;x\u0007\u009b2J\u202eb');
    for (const args of [[name], ['--json', name]]) {
      const { out } = await audit(...args);
      expect(out.replaceAll('\n', '')).not.toMatch(/[\p{Cc}\p{Cf}]/u);
    }
    const [{ findings }] = JSON.parse((await audit('--json', name)).out);
    expect(findings[0].value).toBe('a\u001b]0;x\u0007\u009b2J\u202eb');
  });

  it('needs the severity to be one', async () => {
    expect(await audit('--fail-on=some', 'x')).toEqual({
      status: 1,
      out: '',
      err: "cowdisk: --fail-on: expected info, low, medium, high or none, not 'some'\n",
    });
  });

  it('ends on a file of any size', async () => {
    const name = await image('huge.qcow2');
    truncateSync(name, 2 ** 38);
    const { status, out } = await audit('--json', name);
    expect(status).toBe(0);
    expect(out).toContain('audit.content-unread');
  });
});

describe('images made here', () => {
  it('have nothing but facts in them', async () => {
    writeFileSync(path('base.raw'), new Uint8Array(1024 * 1024).fill(5));
    for (const format of ['qcow2', 'cow', 'add-cow', 'raw']) {
      const name = path(`made.${format}`);
      const options = format === 'add-cow' ? { imageFile: 'image.raw' } : {};
      const backing = format === 'raw' ? {} : { backing: { name: 'base.raw', format: 'raw' } };
      await createImage(name, { format, size: 1024 * 1024, references: 'allow', options, ...backing });
      const { findings, format: found } = await auditImage(name);
      const grave = findings.filter(({ severity }) => severity !== 'info').map(({ id }) => id);
      // User Mode Linux needs absolute names.
      expect([found, grave]).toEqual([format, format === 'cow' ? ['reference.outside'] : []]);
    }
  });
});

/** Slow to make: as many iterations as QEMU takes by itself, or half. */
async function encrypted(at: (name: string) => string): Promise<void> {
  const luks = (...options: string[]): string => ['key-secret=s', 'iter-time=300', ...options].join(',');
  const key = secret('s', 'open sesame');
  await mustRun('qemu-img', 'create', '-q', ...key, '-f', 'luks', '-o', luks(), at('disk.luks'), '1M');
  const inside = luks('format=luks')
    .split(',')
    .map((option) => `encrypt.${option}`)
    .join(',');
  await mustRun('qemu-img', 'create', '-q', ...key, '-f', 'qcow2', '-o', inside, at('luks.qcow2'), '1M');
}

describeWithQemu('images of qemu-img', () => {
  it('have nothing but facts in them', { timeout: 120_000 }, async () => {
    const made = path('made-by-qemu');
    execFileSync('mkdir', [made]);
    const at = (name: string): string => `${made}/${name}`;
    const create = (name: string, ...args: string[]) => mustRun('qemu-img', 'create', '-q', ...args, at(name));
    await mustRun('qemu-img', 'create', '-q', '-f', 'raw', at('base.raw'), '64M');
    await mustRun('qemu-io', '-f', 'raw', '-c', 'write -P 7 0 4M', at('base.raw'));
    for (const [name, options] of Object.entries({
      v2: 'compat=0.10',
      v3: 'compat=1.1',
      small: 'cluster_size=512',
      large: 'cluster_size=2M',
      metadata: 'preallocation=metadata',
      extended: 'extended_l2=on',
      narrow: 'refcount_bits=1',
      lazy: 'lazy_refcounts=on',
      external: `data_file=data.raw`,
      flat: `data_file=flat.raw,data_file_raw=on`,
    })) {
      await mustRun('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, at(`${name}.qcow2`), '64M');
      await mustRun('qemu-io', '-c', 'write -P 3 1M 3M', '-c', 'discard 2M 1M', at(`${name}.qcow2`));
    }
    await create('overlay.qcow2', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw');
    await mustRun('qemu-io', '-c', 'write -P 3 1M 3M', at('overlay.qcow2'));
    for (const [name, ...args] of [
      ['zlib.qcow2', '-c', '-O', 'qcow2'],
      ['zstd.qcow2', '-c', '-O', 'qcow2', '-o', 'compression_type=zstd'],
    ] as const) {
      await mustRun('qemu-img', 'convert', ...args, at('overlay.qcow2'), at(name));
    }
    for (const name of ['v2.qcow2', 'v3.qcow2']) {
      await mustRun('qemu-img', 'snapshot', '-c', 'one', at(name));
      await mustRun('qemu-io', '-c', 'write -P 9 0 3M', at(name));
    }
    await mustRun('qemu-img', 'bitmap', '--add', at('v3.qcow2'), 'b');
    await mustRun('qemu-io', '-c', 'write -P 9 8M 3M', at('v3.qcow2'));
    await mustRun('qemu-img', 'resize', '-q', at('large.qcow2'), '8T');
    if (LONG) await encrypted(at);
    const names = readdirSync(made).filter((name) => !name.endsWith('.raw') || name === 'base.raw');
    expect(names).toHaveLength(LONG ? 16 : 14);
    for (const name of names) {
      const { findings, format } = await auditImage(at(name));
      expect([name, ...findings.filter(({ severity }) => severity !== 'info')]).toEqual([name]);
      expect(format).toBe(name.slice(name.lastIndexOf('.') + 1));
    }
  });
});
