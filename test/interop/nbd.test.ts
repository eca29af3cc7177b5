/** The NBD server under clients that others have written: nbdinfo, nbdcopy and nbdsh of libnbd, qemu-img and qemu-io. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { scratch } from '../support/scratch.ts';
import { requireBuild } from './transcript-harness.ts';

const PROGRAM = fileURLToPath(new URL('../../bin/cowdisk.js', import.meta.url));
const path = scratch();
// Debian's nbdsh wants Debian's python.
const env = { ...process.env, PATH: `/usr/bin:${process.env['PATH']}`, NETTLE_FAT_OVERRIDE: 'vendor:intel' };
const has = (program: string): boolean => spawnSync('sh', ['-c', `command -v ${program}`], { env }).status === 0;
const hasPeers = ['nbdinfo', 'nbdcopy', 'nbdsh', 'qemu-img', 'qemu-io'].every(has);
const PATIENCE = 20_000;

interface Served {
  readonly process: ChildProcess;
  readonly uri: string;
  readonly said: () => string;
  /** @returns the exit status */
  stop(signal?: 'SIGINT' | 'SIGTERM' | 'SIGKILL'): Promise<number | null>;
}

const running = new Set<Served>();
let count = 0;

/** Starts the program, and waits until clients can connect. */
async function serve(...args: string[]): Promise<Served> {
  const socket = `${++count}.sock`;
  const pidFile = `${count}.pid`;
  const all = ['nbd', 'serve', '--socket', socket, '--pid-file', pidFile, ...args];
  const child = spawn(process.execPath, [PROGRAM, ...all], { cwd: path('.'), env, stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (text) => {
      said += text;
    });
  const ended = new Promise<number | null>((resolve) => child.on('close', resolve));
  const served: Served = {
    process: child,
    uri: `nbd+unix:///?socket=${socket}`,
    said: () => said,
    stop: async (signal = 'SIGTERM') => {
      running.delete(served);
      child.kill(signal);
      return await ended;
    },
  };
  running.add(served);
  while (!(existsSync(path(pidFile)) && readFileSync(path(pidFile), 'utf8').endsWith('\n'))) {
    if (child.exitCode !== null) throw new Error(`the server has ended: ${said}`);
    await sleep(10);
  }
  return served;
}

/** Runs a client. @returns what it prints; fails when it does */
function client(program: string, ...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(program, args, {
    cwd: path('.'),
    env,
    encoding: 'utf8',
    timeout: PATIENCE,
  });
  expect([program, ...args, status, stderr]).toEqual([program, ...args, 0, '']);
  return stdout;
}

function image(name: string, ...writes: string[]): void {
  client('qemu-img', 'create', '-q', '-f', name.endsWith('.raw') ? 'raw' : 'qcow2', name, '16M');
  for (const write of writes) client('qemu-io', '-f', name.endsWith('.raw') ? 'raw' : 'qcow2', '-c', write, name);
}

describe.skipIf(!hasPeers && process.env['CI'] === undefined)(
  'the NBD server [needs libnbd-bin, python3-libnbd, qemu-utils]',
  () => {
    beforeAll(requireBuild);
    afterEach(async () => {
      for (const served of running) await served.stop('SIGKILL');
    });

    it('is understood by nbdinfo: facts, list and maps', { timeout: PATIENCE }, async () => {
      image('info.qcow2', 'write -P 5 1M 3M');
      client('qemu-img', 'bitmap', '--add', 'info.qcow2', 'changes');
      client('qemu-io', '-c', 'write -P 6 8M 1M', 'info.qcow2');
      image('other.raw');
      const { uri } = await serve('-t', '-r', '-x', 'first disk', '-x', 'other', 'info.qcow2', 'other.raw');
      const listed = JSON.parse(client('nbdinfo', '--json', '--list', '--no-content', uri)) as {
        readonly exports: readonly Record<string, unknown>[];
      };
      expect(listed.exports.map((one) => one['export-name'])).toEqual(['first disk', 'other']);
      expect(listed.exports[0]).toMatchObject({
        contexts: ['base:allocation', 'qemu:allocation-depth', 'qemu:dirty-bitmap:changes'],
        'export-size': 16 * 1024 * 1024,
        is_read_only: true,
        can_multi_conn: true,
        can_df: true,
        can_cache: true,
        can_fast_zero: false,
        block_size_minimum: 1,
        block_size_maximum: 33_554_432,
      });
      const map = (context: string): unknown =>
        (JSON.parse(client('nbdinfo', '--json', `--map=${context}`, uri)) as { offset: number; type: number }[]).map(
          ({ offset, type }) => [offset / 2 ** 20, type],
        );
      expect(map('base:allocation')).toEqual([
        [0, 3],
        [1, 0],
        [4, 3],
        [8, 0],
        [9, 3],
      ]);
      expect(map('qemu:allocation-depth')).toEqual([
        [0, 0],
        [1, 1],
        [4, 0],
        [8, 1],
        [9, 0],
      ]);
      expect(map('qemu:dirty-bitmap:changes')).toEqual([
        [0, 0],
        [8, 1],
        [9, 0],
      ]);
    });

    it('is copied from and to by nbdcopy, over several connections', { timeout: PATIENCE }, async () => {
      image('from.qcow2', 'write -P 5 1M 3M', 'write -P 7 4194817 1000', 'write -z 2M 64k');
      image('to.qcow2', 'write -P 9 0 16M');
      const from = await serve('-t', '-r', 'from.qcow2');
      const to = await serve('-t', 'to.qcow2');
      client('nbdcopy', '--connections=4', from.uri, 'copy.raw');
      client('nbdcopy', '--connections=4', '--destination-is-zero', 'copy.raw', 'plain.raw');
      client('nbdcopy', '--connections=4', '--flush', 'copy.raw', to.uri);
      expect([await from.stop(), await to.stop('SIGINT')]).toEqual([0, 0]);
      for (const name of ['copy.raw', 'plain.raw']) {
        expect(client('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', 'from.qcow2', name)).toBe(
          'Images are identical.\n',
        );
      }
      expect(client('qemu-img', 'compare', 'from.qcow2', 'to.qcow2')).toBe('Images are identical.\n');
      expect(client('qemu-img', 'check', 'to.qcow2')).toContain('No errors were found');
      expect(existsSync(path(`${count}.sock`)) || existsSync(path(`${count}.pid`))).toBe(false);
    });

    it('does what an nbdsh script says', { timeout: PATIENCE }, async () => {
      image('script.raw');
      const { uri, stop } = await serve('-t', '-f', 'raw', 'script.raw');
      const script = `
assert h.get_structured_replies_negotiated() and h.can_fua() and h.can_fast_zero()
h.pwrite(b"hello" * 1000, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(5000, 12345) == b"hello" * 1000
assert h.pread_structured(5000, 12345, lambda *a: 0, nbd.CMD_FLAG_DF) == b"hello" * 1000
h.zero(1000, 12345, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(1005, 12345) == bytes(1000) + b"hello"
h.trim(65536, 1 << 20)
h.cache(65536, 0)
h.flush()
h.set_strict_mode(0)
for bad in (lambda: h.pread(2, (16 << 20) - 1), lambda: h.pwrite(b"xx", (16 << 20) - 1)):
    try:
        bad()
        assert False
    except nbd.Error as error:
        print(error.errno)
cookies = [h.aio_pread(nbd.Buffer(4096), i * 4096) for i in range(64)]
while h.aio_in_flight() > 0: h.poll(-1)
h.shutdown()
`;
      expect(client('nbdsh', '-u', uri, '-c', script)).toBe('EINVAL\nENOSPC\n');
      expect(await stop()).toBe(0);
      expect(readFileSync(path('script.raw')).subarray(13_345, 13_350).toString()).toBe('hello');
    });

    it('is a disk for qemu-img and qemu-io', { timeout: PATIENCE }, async () => {
      image('disk.qcow2', 'write -P 5 1M 3M');
      client('qemu-img', 'snapshot', '-c', 'before', 'disk.qcow2');
      const { uri, stop } = await serve('-t', '-x', '', 'disk.qcow2');
      expect(
        client('qemu-io', '-f', 'raw', '-c', 'read -P 5 1M 3M', '-c', 'write -P 8 500 1M', '-c', 'flush', uri),
      ).not.toContain('failed');
      expect(
        client('qemu-io', '-f', 'raw', '-c', 'read -P 8 500 1M', '-c', 'discard 2M 1M', '-c', 'write -z 3M 1M', uri),
      ).not.toContain('failed');
      client('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', uri, 'converted.qcow2');
      expect(await stop()).toBe(0);
      expect(client('qemu-img', 'compare', 'disk.qcow2', 'converted.qcow2')).toBe('Images are identical.\n');
      const frozen = await serve('-t', '-l', 'before', 'disk.qcow2');
      expect(
        client('qemu-io', '-r', '-f', 'raw', '-c', 'read -P 5 1M 3M', '-c', 'read -P 0 0 1M', frozen.uri),
      ).not.toContain('failed');
    });

    it('listens on TCP, IPv4 and IPv6, and ends with its last client', { timeout: PATIENCE }, async () => {
      image('tcp.raw', 'write -P 3 0 1M');
      for (const address of ['127.0.0.1', '::1']) {
        const served = await serve('-r', '-f', 'raw', '-p', '0', '-b', address, 'tcp.raw');
        while (served.said().split('\n').length < 3) await sleep(10);
        const uri = served.said().split('\n')[1] as string;
        expect(uri).toMatch(address === '::1' ? /^nbd:\/\/\[::1\]:\d+\/$/ : /^nbd:\/\/127\.0\.0\.1:\d+\/$/);
        expect(client('nbdinfo', '--size', uri)).toBe('16777216\n');
        running.delete(served);
        await new Promise((resolve) =>
          served.process.exitCode === null ? served.process.on('close', resolve) : resolve(0),
        );
        expect(served.process.exitCode).toBe(0);
      }
    });

    it('says what a client has done wrong, and serves the others', { timeout: PATIENCE }, async () => {
      image('noise.raw');
      const { uri, said } = await serve('-t', '-e', '2', '-f', 'raw', 'noise.raw');
      const noise = connect(path(uri.split('=')[1] as string));
      noise.on('error', () => undefined);
      noise.resume();
      noise.write(Buffer.alloc(100, 0xff));
      await new Promise((resolve) => noise.on('close', resolve));
      expect(client('nbdinfo', '--size', uri)).toBe('16777216\n');
      expect(said()).toContain('cowdisk: warning: nbd: the client has unknown flags 0xffffffff\n');
    });
  },
);
