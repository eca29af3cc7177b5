/** The commands that look at an image: alloc, map, length, info, help. */
import { throwIfAborted } from '../../base/job.ts';
import { ExtentList } from '../../core/extent.ts';
import { formatBelow } from '../../core/node.ts';
import { specificLines } from '../render/human.ts';
import { bytesArgument, SECTOR } from './numbers.ts';
import { refuse } from './refusal.ts';
import type { Session } from './session.ts';
import { findCommand, helpOf, helpOfAll } from './table.ts';
import { sizeText } from './text.ts';

export async function alloc(session: Session, words: readonly string[]): Promise<void> {
  const [, at = '', count] = words;
  const offset = bytesArgument(at, session.cli);
  const wanted = count === undefined ? SECTOR : bytesArgument(count, session.cli);
  const length = Math.min(wanted, Math.max(0, session.image.virtualSize - offset));
  let allocated = 0;
  await ranges(session, offset, length, (_, part, present) => {
    if (present) allocated += part;
  });
  session.cli.out.write(`${allocated}/${length} bytes allocated at offset ${sizeText(offset)}\n`);
}

export async function map(session: Session): Promise<void> {
  const { out } = session.cli;
  let start = 0;
  let length = 0;
  let isPresent = false;
  const line = (): void => {
    const state = isPresent ? '    allocated' : 'not allocated';
    out.write(
      `${sizeText(length)} (0x${length.toString(16)}) bytes ${state} at offset ${sizeText(start)} (0x${start.toString(16)})\n`,
    );
  };
  await ranges(session, 0, session.image.virtualSize, (at, part, present) => {
    if (length > 0 && present === isPresent) {
      length += part;
      return;
    }
    if (length > 0) line();
    start = at;
    length = part;
    isPresent = present;
  });
  if (length > 0) line();
}

/** Calls `each` for the ranges that this layer holds itself or does not. Neighbours may say the same. */
async function ranges(
  session: Session,
  offset: number,
  length: number,
  each: (at: number, length: number, present: boolean) => void,
): Promise<void> {
  const { node } = session.image;
  // A disk that is its file holds every byte of it, holes as well.
  if (node.format.recurse === 'status') {
    if (length > 0) each(offset, length, true);
    return;
  }
  const list = new ExtentList(4096);
  try {
    for (let at = offset; at < offset + length; at = list.end) {
      throwIfAborted(session.cli.signal);
      list.reset(at);
      await node.layerExtents(at, offset + length - at, list);
      // What a filter shows of its image's backing files is none of the image's own.
      for (const { start, length: part, present, depth } of list) each(start, part, present && depth === 0);
    }
  } catch (error) {
    throw session.requestFailure('block status', error);
  }
}

export function length(session: Session): void {
  session.cli.out.write(`${sizeText(session.image.virtualSize)}\n`);
}

/** Drivers that have no cluster size and the like, nor anything below to ask. */
const WITHOUT_FACTS: readonly string[] = ['null-co', 'null-aio', 'quorum'];

export async function info(session: Session): Promise<void> {
  const { image } = session;
  // They know nothing of the kind, and QEMU takes that for a failure.
  if (session.cli.personality.qemu && WITHOUT_FACTS.includes(image.format))
    throw refuse(`format name: ${image.format}`);
  const { clusterSize = 0, specific } = await image.info();
  const { format } = image.node;
  // A filter has it where the image below has.
  const file = format.children[0]?.node;
  const below = format.recurse === 'through' && file !== undefined ? formatBelow(file) : format;
  const stateOffset = below?.vmState?.offset ?? 0;
  const lines = [
    `format name: ${image.format}`,
    `cluster size: ${sizeText(clusterSize)}`,
    `vm state offset: ${sizeText(stateOffset)}`,
    ...(specific === undefined ? [] : specificLines(specific)),
  ];
  session.cli.out.write(`${lines.join('\n')}\n`);
}

export function help(session: Session, words: readonly string[]): void {
  const [, name] = words;
  if (name === undefined) {
    session.cli.out.write(helpOfAll());
    return;
  }
  const spec = findCommand(name);
  if (spec === undefined) throw refuse(`command ${name} not found`);
  session.cli.out.write(helpOf(spec));
}
