/** `name=value,name2=value2` lists as QEMU's QemuOpts reads them: doubled commas, options without a value, several lists in a row.
 *  Pure text work; knows no option's meaning. */
import { Failure } from './failure.ts';

/** One option of a list, in the order given. */
export interface ListedOption {
  readonly name: string;
  readonly value: string;
}

/** Joins a further `-o` to those before it.
 *  @throws {@link Failure} for lists that would not be read as written when joined: empty, or with a comma at either end. */
export function appendOptionList(before: string | undefined, list: string): string {
  const trailing = /,*$/.exec(list)?.[0].length ?? 0;
  if (list === '' || list.startsWith(',') || trailing % 2 === 1) throw new Failure(`Invalid option list: ${list}`);
  return before === undefined ? list : `${before},${list}`;
}

/** The pieces between single commas; a doubled comma stands for one. */
export function splitCommas(list: string): string[] {
  const pieces: string[] = [];
  let piece = '';
  for (let i = 0; i < list.length; i++) {
    if (list[i] !== ',') piece += list[i];
    else if (list[i + 1] === ',') {
      piece += ',';
      i++;
    } else {
      pieces.push(piece);
      piece = '';
    }
  }
  if (piece !== '') pieces.push(piece);
  return pieces;
}

/** A name alone means `on`; with `no` in front, `off`. */
export function parseOptionList(list: string): ListedOption[] {
  return splitCommas(list).map((piece) => {
    const equals = piece.indexOf('=');
    if (equals >= 0) return { name: piece.slice(0, equals), value: piece.slice(equals + 1) };
    return piece.startsWith('no') ? { name: piece.slice(2), value: 'off' } : { name: piece, value: 'on' };
  });
}

/** Whether `help` or `?` stands in the list as an option of its own. */
export function asksForHelp(list: string): boolean {
  return splitCommas(list).some((piece) => piece === 'help' || piece === '?');
}

/** A value with its commas doubled, as a list can hold it. */
export function escapeCommas(value: string): string {
  return value.replaceAll(',', ',,');
}
