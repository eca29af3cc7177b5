/** One directory for one case, the real tools in it, and what they say of an image in the form that ours is compared with. */
import { mkdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { CheckResult } from '../../src/core/format.ts';
import type { Image } from '../../src/image/image.ts';
import { native } from '../../src/platform/node/native.ts';
import { spawn } from './transcript-harness.ts';

export interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly offset?: number | undefined;
}

export class Workbench {
  readonly directory: string;

  constructor(directory: string) {
    this.directory = directory;
    mkdirSync(directory, { recursive: true });
  }

  dispose(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  /** Runs a tool; anything but success is the test's failure. */
  async run(program: string, ...args: string[]): Promise<string> {
    const { stdout, stderr, status } = await spawn(program, args, this.directory);
    if (status !== 0) throw new Error(`${program} ${args.join(' ')}: [${status}] ${stdout}${stderr}`);
    return stdout;
  }

  img(...args: string[]): Promise<string> {
    return this.run('qemu-img', ...args);
  }

  async io(image: string, commands: readonly string[], ...options: string[]): Promise<void> {
    if (commands.length === 0) return;
    const args = commands.flatMap((command) => ['-c', command]);
    const output = await this.run('qemu-io', ...options, ...args, image);
    // qemu-io goes on after a failed command, and ends well
    if (/failed|error/i.test(output)) throw new Error(`qemu-io ${commands.join('; ')}: ${output}`);
  }

  /** Guest bytes as the real tools read them. */
  async bytes(image: string, format: string, start: number, length: number): Promise<Buffer> {
    if (length === 0) return Buffer.alloc(0);
    const file = { driver: format, file: { driver: 'file', filename: image } };
    // the window is cut out in sectors
    const from = start - (start % 512);
    const size = Math.ceil((start + length - from) / 512) * 512;
    await this.img(
      'convert',
      '-O',
      'raw',
      `json:${JSON.stringify({ driver: 'raw', offset: from, size, file })}`,
      'window.raw',
    );
    return readFileSync(this.path('window.raw')).subarray(start - from, start - from + length);
  }

  async map(image: string): Promise<MapEntry[]> {
    return JSON.parse(await this.img('map', '-f', 'qcow2', '--output=json', image)) as MapEntry[];
  }

  async check(image: string): Promise<Record<string, number>> {
    const { stdout, stderr, status } = await spawn(
      'qemu-img',
      ['check', '-f', 'qcow2', '--output=json', image],
      this.directory,
    );
    if (stdout === '') throw new Error(`qemu-img check ${image}: [${status}] ${stderr}`);
    const { filename: _, format: __, ...counters } = JSON.parse(stdout) as Record<string, number>;
    return counters;
  }

  size(name: string): number {
    return statSync(this.path(name)).size;
  }
}

/** Our extents as `qemu-img map --output=json` has them. */
export async function mapOf(image: Image): Promise<MapEntry[]> {
  const entries: MapEntry[] = [];
  for await (const { start, length, depth, present, zero, data, hostOffset } of image.extents()) {
    entries.push({
      start,
      length,
      depth,
      present,
      zero,
      data,
      ...(hostOffset === undefined ? {} : { offset: hostOffset }),
    });
  }
  // of an empty disk there is one row, too
  const nothing = { start: 0, length: 0, depth: 0, present: false, zero: false, data: false };
  return entries.length === 0 ? [nothing] : entries;
}

/** Without the native calls nobody here knows the holes of a file: allocated space counts as data then. */
export function comparable(entries: readonly MapEntry[]): MapEntry[] {
  if (native().available) return [...entries];
  const joined: MapEntry[] = [];
  for (const entry of entries) {
    const plain = { ...entry, zero: entry.zero && !entry.data };
    const last = joined.at(-1);
    const continues =
      last !== undefined &&
      last.depth === plain.depth &&
      last.present === plain.present &&
      last.zero === plain.zero &&
      last.data === plain.data &&
      (last.offset === undefined ? plain.offset === undefined : last.offset + last.length === plain.offset);
    if (continues) joined[joined.length - 1] = { ...last, length: last.length + plain.length };
    else joined.push(plain);
  }
  return joined;
}

/** Our counters as `qemu-img check --output=json` has them. */
export function countersOf(result: CheckResult): Record<string, number> {
  const named: Record<string, number | undefined> = {
    'image-end-offset': result.imageEndOffset,
    'total-clusters': result.totalClusters,
    'allocated-clusters': result.allocatedClusters,
    'fragmented-clusters': result.fragmentedClusters,
    'compressed-clusters': result.compressedClusters,
    corruptions: result.corruptions,
    leaks: result.leaks,
  };
  const shown = Object.entries(named).filter((entry): entry is [string, number] => (entry[1] ?? 0) !== 0);
  return { ...Object.fromEntries(shown), 'check-errors': result.checkErrors };
}

/** What is wrong, of the counters of a check. */
export function faultsOf(counters: Readonly<Record<string, number>>): Record<string, number> {
  const { corruptions = 0, leaks = 0, 'check-errors': errors = 0 } = counters;
  return { corruptions, leaks, errors };
}
export const NONE = { corruptions: 0, leaks: 0, errors: 0 };

/** Where two buffers differ first, for a message; `undefined` when they do not. */
export function firstDifference(a: Uint8Array, b: Uint8Array): string | undefined {
  if (Buffer.compare(a, b) === 0) return undefined;
  let at = 0;
  while (at < a.length && a[at] === b[at]) at++;
  return `byte ${at} of ${a.length} is ${a[at]}, and ${b[at]} of ${b.length}`;
}
