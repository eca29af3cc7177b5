/** `-` on the command line: standard input and output as images. Owns what stands behind the two descriptors, and what is said of it.
 *  Invariants: a terminal is neither read nor written; what goes to standard output is nothing but the image; nothing blocks the process: Ctrl-C
 *  ends it whatever the other side of the pipe does. */
import { fstatSync } from 'node:fs';
import type { BlockNode } from '../core/node.ts';
import { descriptorTarget, storeOfDescriptor } from '../storage/file.ts';
import { type ForwardTarget, writableTarget } from '../storage/forward-sink.ts';
import type { SpoolEvent, TemporaryFile } from '../tools/convert-stream.ts';
import { WHY } from '../tools/convert-stream.ts';
import { type Cli, isTerminal } from './console.ts';
import { Failure } from './failure.ts';

export const INPUT_NAME = 'standard input';
export const OUTPUT_NAME = 'standard output';

/** Whether an operand means a standard stream. Called qemu-img, it is a file of that name, as QEMU has it. */
export function isStandardStream(cli: Cli, operand: string | undefined): boolean {
  return operand === '-' && !cli.personality.qemu;
}

/** What is behind standard input: a file or device that can be read at any place, or what comes through a pipe.
 *  @param forceShare read a file that another process writes
 *  @throws {@link Failure} for a terminal. */
export function standardInput(
  cli: Cli,
  forceShare: boolean,
): { readonly file: BlockNode } | { readonly stream: AsyncIterable<Uint8Array> } {
  if (cli.input !== undefined) return { stream: cli.input };
  if (isTerminal(0)) {
    throw new Failure(
      `${INPUT_NAME} is a terminal; give an image: 'cowdisk convert - … < FILE', or a program before '|'`,
    );
  }
  const file = storeOfDescriptor(0, INPUT_NAME, { forceShare });
  return file === undefined ? { stream: process.stdin } : { file };
}

/** Where the bytes of an image go that is written to standard output.
 *  @throws {@link Failure} for a terminal. */
export function standardOutput(): ForwardTarget {
  if (isTerminal(1)) {
    throw new Failure(
      `${OUTPUT_NAME} is a terminal, which an image would spoil; send it to a file with '> FILE', or to a program with '|'`,
    );
  }
  const status = fstatSync(1);
  // Files and devices are always ready; for the others the process must be able to do something else while it waits. The stream is Node's own,
  // because worker threads want it as well, and there cannot be two over one pipe.
  if (status.isFIFO() || status.isSocket()) return writableTarget(process.stdout, true);
  return descriptorTarget(1, OUTPUT_NAME);
}

/** A place for temporary files in `directory`, or where the system has them. */
export function temporaryIn(directory: string | undefined): () => Promise<TemporaryFile> {
  return async () => {
    const { temporaryFile } = await import('../storage/temporary.ts');
    return temporaryFile(directory);
  };
}

/** Announces a temporary file. */
export function tellSpool(cli: Cli, { stream, reason, file }: SpoolEvent): void {
  cli.err.write(`${cli.personality.program}: ${stream} goes through the temporary file '${file}': ${WHY[reason]}\n`);
}
