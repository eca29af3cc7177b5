/** What the tests against User Mode Linux share: its tools and its guest where they are there, bases with a known past, and the flat
 *  disk that a cow file and its base must add up to. */
import { spawnSync } from 'node:child_process';
import { closeSync, fstatSync, ftruncateSync, openSync, readSync, utimesSync, writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, it } from 'vitest';
import type { Image } from '../../src/image/image.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';

export const SECTOR = 512;
/** When every base was last written, in seconds since 1970: 2003-09-13, the days of the first v3. */
export const BASE_TIME = 1_063_447_200;
const CHUNK = 4 << 20;
const LONG = process.env['COWDISK_LONG'] === '1';
const CI = process.env['CI'] !== undefined;
const GUEST = fileURLToPath(new URL('../../scripts/uml/guest.mjs', import.meta.url));
/** Exit status of the guest script: this machine does not let UML run; a program is missing. */
const CANNOT_RUN = 3;
const MISSING = 4;

export interface ToolResult {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export function runTool(command: string, args: readonly string[]): ToolResult {
  const { status, signal, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 64 << 20 });
  if (error !== undefined) throw error;
  return { status: status ?? 128, stdout, stderr: signal === null ? stderr : `${stderr}ended by ${signal}\n` };
}

/** Insists that it succeeds. */
export function mustRun(command: string, args: readonly string[]): string {
  const { status, stdout, stderr } = runTool(command, args);
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: [${status}] ${stdout}${stderr}`);
  return stdout;
}

const hasUmlTools = ['uml_moo', 'uml_mkcow'].every((tool) => spawnSync(tool).error === undefined);
/** Whether to run tests of these tools: under CI they must be there. */
export const umlToolsWanted = hasUmlTools || CI;

/** A suite that needs uml_moo and uml_mkcow: skipped without them, except under CI, where it must fail. */
export function describeWithUmlTools(name: string, body: () => void): void {
  if (umlToolsWanted) describe(name, body);
  else it.skip(`${name} [skipped: uml_moo and uml_mkcow are not installed]`);
}

/** A suite that boots guests, for the long run. Skipped, and that is said, where the machine does not let UML run. */
export function describeWithGuest(name: string, body: () => void): void {
  if (!LONG) {
    it.skip(`${name} [skipped: only in npm run test:long]`);
    return;
  }
  const { status, stderr } = runTool(process.execPath, [GUEST, '--probe', '--time', '60']);
  if (status === 0) {
    describe(name, body);
  } else if (status === CANNOT_RUN || (status === MISSING && !CI)) {
    process.stderr.write(`${name}: skipped: ${stderr}`);
    it.skip(`${name} [skipped: ${stderr.split('\n', 1)[0]}]`);
  } else {
    it(name, () => {
      throw new Error(`the guest does not boot: [${status}] ${stderr}`);
    });
  }
}

/** Boots a guest that runs the job. @param files [name in the guest, path] @returns what the job printed. */
export function runGuest(job: string, disks: readonly string[], files: readonly (readonly [string, string])[]): string {
  const named = files.flatMap(([name, path]) => ['--file', `${name}=${path}`]);
  return mustRun(process.execPath, [GUEST, '--time', '300', ...named, job, ...disks]);
}

/** Makes a disk with islands of noise in holes; the same for the same seed. Its time is {@link BASE_TIME}. */
export function makeBase(path: string, size: number, seed: number): void {
  const random = seededRandom(seed);
  const file = openSync(path, 'w');
  try {
    ftruncateSync(file, size);
    for (let i = 0; i < 12; i++) {
      const offset = below(random, size);
      writeSync(file, noise(random, Math.min(1 + below(random, 96 << 10), size - offset)), 0, undefined, offset);
    }
    writeSync(file, noise(random, 1), 0, 1, size - 1);
  } finally {
    closeSync(file);
  }
  utimesSync(path, BASE_TIME, BASE_TIME);
}

/** Where a random write goes: anywhere or on sectors, mostly short, the first and the last bytes of the disk more often than chance would. */
export function someRange(random: () => number, size: number): { readonly offset: number; readonly length: number } {
  const unit = random() < 0.5 ? 1 : SECTOR;
  const limit = random() < 0.2 ? 64 << 10 : 9 * SECTOR;
  const length = Math.min(size, unit * Math.ceil((1 + below(random, limit)) / unit));
  const room = size - length;
  const at = random();
  const offset = at < 0.1 ? 0 : at < 0.2 ? room : below(random, room + 1);
  return { offset: offset - (offset % unit), length };
}

/** A disk as a flat file: what the image and its base must add up to. */
export class FlatDisk {
  readonly path: string;

  readonly #seed: number;

  /** @param path a copy of the base
   *  @param seed named in differences */
  constructor(path: string, seed: number) {
    this.path = path;
    this.#seed = seed;
  }

  write(offset: number, bytes: Uint8Array): void {
    const file = openSync(this.path, 'r+');
    try {
      writeSync(file, bytes, 0, bytes.length, offset);
    } finally {
      closeSync(file);
    }
  }

  /** Writes and zeroes at random through the library; the file follows. */
  async churn(image: Image, random: () => number, count: number): Promise<void> {
    for (let i = 0; i < count; i++) {
      const { offset, length } = someRange(random, image.virtualSize);
      if (random() < 0.2) {
        this.write(offset, new Uint8Array(length));
        await image.writeZeroes(offset, length);
      } else {
        const bytes = noise(random, length);
        this.write(offset, bytes);
        await image.write(offset, bytes);
      }
    }
  }

  /** Where a file of the same bytes is not that; `undefined` when it is. */
  async differenceFrom(path: string): Promise<string | undefined> {
    const file = openSync(path, 'r');
    try {
      return await this.#compare(fstatSync(file).size, (offset, into) => readFully(file, offset, into));
    } finally {
      closeSync(file);
    }
  }

  /** Where the image reads differently; `undefined` when it does not. */
  differenceFromImage(image: Image): Promise<string | undefined> {
    return this.#compare(image.virtualSize, (offset, into) => image.read(offset, into));
  }

  async #compare(size: number, read: (offset: number, into: Buffer) => unknown): Promise<string | undefined> {
    const file = openSync(this.path, 'r');
    try {
      const wantedSize = fstatSync(file).size;
      if (size !== wantedSize) return `seed ${this.#seed}: ${size} bytes, and should be ${wantedSize}`;
      for (let offset = 0; offset < size; offset += CHUNK) {
        const got = Buffer.alloc(Math.min(CHUNK, size - offset));
        const wanted = Buffer.alloc(got.length);
        readFully(file, offset, wanted);
        await read(offset, got);
        if (got.equals(wanted)) continue;
        const at = got.findIndex((byte, index) => byte !== wanted[index]);
        const sector = Math.floor((offset + at) / SECTOR);
        return `seed ${this.#seed}: byte ${offset + at} (sector ${sector} of ${size / SECTOR}) is ${got[at]}, and should be ${wanted[at]}`;
      }
      return undefined;
    } finally {
      closeSync(file);
    }
  }
}

function readFully(file: number, offset: number, into: Buffer): void {
  for (let done = 0; done < into.length; ) {
    const got = readSync(file, into, done, into.length - done, offset + done);
    if (got === 0) throw new Error(`the file ends at byte ${offset + done}`);
    done += got;
  }
}
