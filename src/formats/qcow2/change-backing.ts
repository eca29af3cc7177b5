/** Recording another backing file: name in the first cluster, format in a header extension.
 *  Spec: qcow2, "Header" (backing_file_offset, backing_file_size), "Header extensions" (backing file format name). Runs alone.
 *  Order: see header-switch.ts; even a torn write leaves the old backing file or the new one. */
import { BlockError } from '../../base/errors.ts';
import type { BackingRecord } from '../../core/format.ts';
import { AUTOCLEAR } from './features.ts';
import { switchHeader } from './header-switch.ts';
import type { Qcow2State } from './image-state.ts';

const MAX_NAME_BYTES = 1023;
const MAX_FORMAT_BYTES = 15;

/** @see FormatNode.changeBacking
 *  @throws {@link BlockError} INVALID_ARGUMENT `qcow2.backing-name-length`, `qcow2.backing-format-length`, `qcow2.backing-name`;
 *  OPTION `qcow2.data-file-raw-backing`; NO_SPACE `qcow2.header-space`. */
export async function changeBacking(state: Qcow2State, backing: BackingRecord | undefined): Promise<void> {
  const { header } = state;
  const next = { ...header, backingFile: backing?.name, backingFormat: backing?.format || undefined };
  if (next.backingFile === header.backingFile && next.backingFormat === header.backingFormat) return;
  requireRecordable(state, backing);
  await switchHeader(state, next);
}

/** The largest that can be recorded, and what cannot at all. */
function requireRecordable({ header, name }: Qcow2State, backing: BackingRecord | undefined): void {
  if (backing === undefined) return;
  const refuse = (code: 'INVALID_ARGUMENT' | 'OPTION', finding: string, what: string): BlockError =>
    new BlockError(code, `qcow2 "${name}": ${what}`, { reason: `qcow2.${finding}`, details: { ...backing } });
  const nameBytes = new TextEncoder().encode(backing.name).length;
  const formatBytes = new TextEncoder().encode(backing.format ?? '').length;
  if (backing.name === '' || backing.name.includes('\0')) {
    throw refuse('INVALID_ARGUMENT', 'backing-name', 'the backing file name is not a name');
  }
  if (nameBytes > MAX_NAME_BYTES) {
    throw refuse(
      'INVALID_ARGUMENT',
      'backing-name-length',
      `backing file name of ${nameBytes} bytes; at most ${MAX_NAME_BYTES} can be recorded`,
    );
  }
  if (formatBytes > MAX_FORMAT_BYTES) {
    throw refuse(
      'INVALID_ARGUMENT',
      'backing-format-length',
      `backing format name of ${formatBytes} bytes; at most ${MAX_FORMAT_BYTES} can be recorded`,
    );
  }
  if ((header.autoclear & AUTOCLEAR.dataFileRaw) !== 0n) {
    throw refuse('OPTION', 'data-file-raw-backing', 'data_file_raw and a backing file exclude each other');
  }
}
