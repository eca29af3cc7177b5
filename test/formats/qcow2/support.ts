/** Helpers of the qcow2 tests: images as bytes, scratch directories, and the real qemu-img where it is installed. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe } from 'vitest';
import { BlockError } from '../../../src/base/errors.ts';
import { type OptionsInput, resolveOptions } from '../../../src/base/options.ts';
import { secretsOf } from '../../../src/core/secrets.ts';
import type { ByteStore } from '../../../src/core/store.ts';
import { createQcow2 } from '../../../src/formats/qcow2/create.ts';
import { createOptions } from '../../../src/formats/qcow2/options.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';

export type CreateInput = OptionsInput<typeof createOptions>;

export const hasQemuImg = spawnSync('qemu-img', ['--version']).status === 0;

/** A suite that needs the real qemu-img: skipped without it, except under CI, where it must fail. */
export function describeWithQemu(name: string, body: () => void): void {
  if (hasQemuImg || process.env['CI'] !== undefined) describe(name, body);
  else describe.skip(`${name} [skipped: qemu-img is not installed]`, body);
}

export interface ToolResult {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export function run(command: string, args: readonly string[], cwd: string): ToolResult {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: 'utf8', maxBuffer: 64 << 20 });
  if (error !== undefined) throw error;
  return { status, stdout, stderr };
}

/** Runs qemu-img and insists that it succeeds. */
export function qemuImg(cwd: string, ...args: string[]): string {
  const result = run('qemu-img', args, cwd);
  if (result.status !== 0) throw new Error(`qemu-img ${args.join(' ')}: ${result.stderr}`);
  return result.stdout;
}

export function qemuIo(cwd: string, image: string, ...commands: string[]): string {
  const result = run('qemu-io', [...commands.flatMap((command) => ['-c', command]), image], cwd);
  if (result.status !== 0) throw new Error(`qemu-io ${commands.join('; ')}: ${result.stdout}${result.stderr}`);
  return result.stdout;
}

/** A directory of this test file, removed after its last test. */
export function scratchDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), 'cowdisk-qcow2-'));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

export async function storeOf(bytes: Uint8Array): Promise<MemoryStore> {
  const store = new MemoryStore({ pageSize: 512 });
  await store.write(0, bytes);
  return store;
}

export async function storeOfFile(path: string): Promise<MemoryStore> {
  return storeOf(readFileSync(path));
}

/** Everything a store holds. */
export async function bytesOf(store: ByteStore): Promise<Uint8Array> {
  const bytes = new Uint8Array(store.size);
  await store.read(0, bytes);
  return bytes;
}

export interface Created {
  readonly file: MemoryStore;
  readonly data: MemoryStore | undefined;
}

/** Creates an image in memory. */
export async function createInMemory(size: number, input: CreateInput = {}): Promise<Created> {
  const file = new MemoryStore({ pageSize: 512 });
  let data: MemoryStore | undefined;
  const context = {
    file,
    name: 'test.qcow2',
    secret: secretsOf(undefined),
    referenceStatus: () => Promise.resolve(undefined),
    createReference: (): Promise<ByteStore> => {
      data = new MemoryStore({ pageSize: 512 });
      const keptOpen = data;
      keptOpen.close = () => Promise.resolve();
      return Promise.resolve(keptOpen);
    },
  };
  await createQcow2(context, size, resolveOptions(createOptions, input));
  return { file, data };
}

/** The BlockError that `action` ends with. */
export async function failureOf(action: () => unknown): Promise<BlockError> {
  try {
    await action();
  } catch (error) {
    if (error instanceof BlockError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}
