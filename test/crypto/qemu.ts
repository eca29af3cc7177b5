/** The real qemu-img and qemu-io on encrypted images, and what little the tests need of qcow2's layout. */
import { execFile, execFileSync } from 'node:child_process';
import { describe } from 'vitest';

export const PASSWORD = 'correct horse';

export interface Ended {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

function hasQemu(): boolean {
  try {
    execFileSync('qemu-img', ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** Skipped where QEMU is missing, unless that must not be. */
export const describeWithQemu = describe.skipIf(!hasQemu() && process.env['CI'] === undefined);

export function qemu(program: 'qemu-img' | 'qemu-io', ...args: string[]): Promise<Ended> {
  // Without the instructions for SHA, nettle is slow enough for QEMU 7.2 to measure it: a clock tick without any CPU time is an error there.
  const env = { ...process.env, NETTLE_FAT_OVERRIDE: 'vendor:intel' };
  return new Promise((resolve) => {
    execFile(program, args, { env, timeout: 60_000 }, (error, stdout, stderr) => {
      const status = error === null ? 0 : typeof error.code === 'number' ? error.code : 255;
      resolve({ status, stdout, stderr });
    });
  });
}

/** Runs a tool that must succeed; again when it could not measure its CPU. */
export async function mustRun(program: 'qemu-img' | 'qemu-io', ...args: string[]): Promise<string> {
  for (let attempt = 0; ; attempt++) {
    const { status, stdout, stderr } = await qemu(program, ...args);
    if (status === 0 && !/failed|error/i.test(stdout)) return stdout;
    if (attempt >= 8 || !stderr.includes('Unable to get accurate CPU usage')) {
      throw new Error(`${program} ${args.join(' ')}: [${status}] ${stdout}${stderr}`);
    }
  }
}

/** `--object` of one secret. */
export function secret(id: string, data: string): string[] {
  return ['--object', `secret,id=${id},data=${data}`];
}

/** Arguments that name a LUKS volume for the tools. */
export function luksImage(path: string, password = PASSWORD): string[] {
  return [...secret('s', password), '--image-opts', `driver=luks,key-secret=s,file.driver=file,file.filename=${path}`];
}

interface Info {
  readonly 'format-specific': { readonly data: Record<string, unknown> & { readonly encrypt?: object } };
}

/** What QEMU tells of a format, without the virtual size and such, and without what newer versions add. */
export async function formatInfo(path: string): Promise<Info['format-specific']['data']> {
  const info = JSON.parse(await mustRun('qemu-img', 'info', '--output=json', path)) as Info;
  const { 'detached-header': _, ...data } = info['format-specific'].data;
  return data;
}

/** Where a qcow2 image has its LUKS header. */
export function cryptoHeader(image: Buffer): { readonly offset: number; readonly length: number } {
  for (let at = image.readUInt32BE(100); image.readUInt32BE(at) !== 0; ) {
    const length = image.readUInt32BE(at + 4);
    if (image.readUInt32BE(at) === 0x0537_be77) {
      return { offset: Number(image.readBigUInt64BE(at + 8)), length: Number(image.readBigUInt64BE(at + 16)) };
    }
    at += 8 + Math.ceil(length / 8) * 8;
  }
  throw new Error('the image has no crypto header');
}

/** Where the guest's cluster of 64 KiB lies in a qcow2 image. */
export function hostCluster(image: Buffer, guestOffset: number): number {
  const address = (at: number): number => Number(image.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n);
  const cluster = Math.floor(guestOffset / 65_536);
  const l2 = address(Number(image.readBigUInt64BE(40)) + 8 * Math.floor(cluster / 8192));
  return address(l2 + 8 * (cluster % 8192));
}
