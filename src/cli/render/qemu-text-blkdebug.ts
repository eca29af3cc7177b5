/** QEMU's sentences for blkdebug, blkverify and compress. Data only. */
import { strerror, type TextRule } from './qemu-text.ts';

export const BLKDEBUG_TEXTS: Readonly<Record<string, TextRule>> = {
  'blkdebug.name': 'blkdebug requires both config file and image path',
  'blkdebug.config': (_, error) => `Could not read blkdebug config file: ${strerror(error)}`,
  'blkdebug.limit': ({ limit }) => `Cannot meet constraints with ${limit}`,
  'blkdebug.event-missing': 'Missing event name for rule',
  'blkdebug.value': ({ value }) => `invalid parameter value: ${value}`,
  'blkdebug.rules-no-section': 'no group defined',
  'blkdebug.rules-syntax': 'parse error',
  'blkdebug.rules-section': ({ section }) => `There is no option group '${section}'`,
  'blkdebug.rules-id': () => ({
    text: "Parameter 'id' expects an identifier",
    hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.\n",
  }),
  'blkdebug.rules-id-twice': ({ id, section }) => `Duplicate ID '${id}' for ${section}`,
  'blkdebug.rules-name': ({ name }) => `Invalid parameter '${name}'`,
  'blkdebug.rules-number': ({ name }) => `Parameter '${name}' expects a number`,
  'blkdebug.rules-large': ({ name, value }) => `Value '${value}' is too large for parameter '${name}'`,
  'blkdebug.rules-bool': ({ name }) => `Parameter '${name}' expects 'on' or 'off'`,
  'blkverify.name': 'blkverify requires raw copy and original image path',
  'blkverify.mismatch': ({ sentence }) => `blkverify: ${sentence}`,
  'compress.format': ({ format }) => `Compression is not supported for underlying format: ${format}`,
};
