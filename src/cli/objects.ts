/** `--object`: the secrets that options refer to by id. Objects of QEMU that nothing here uses are refused by name.
 *  Invariant: ids are unique; the text of a secret never appears in a message. */
import { readFileSync } from 'node:fs';
import { ERRNO_TEXT, errnoOf } from '../base/errors.ts';
import { Failure } from './failure.ts';
import { parseOptionList } from './option-list.ts';

export interface Secret {
  readonly id: string;
  /** As given; base64 when `format` says so. */
  readonly data: Uint8Array;
  readonly format: 'raw' | 'base64';
}

/** Types that qemu-img knows and that have no use here. */
const FOREIGN_TYPES = [
  'authz-list',
  'authz-list-file',
  'authz-simple',
  'iothread',
  'main-loop',
  'pr-manager-helper',
  'secret_keyring',
  'thread-context',
  'throttle-group',
  'tls-cipher-suites',
  'tls-creds-anon',
  'tls-creds-psk',
  'tls-creds-x509',
];

const SECRET_PROPERTIES = ['qom-type', 'id', 'data', 'file', 'format', 'keyid', 'iv'];

/** The objects of one command line. */
export class Objects {
  readonly #secrets = new Map<string, Secret>();

  /** Takes one `--object`.
   *  @returns text to print instead of going on (`help`), or `undefined`.
   *  @throws {@link Failure} in QEMU's words. */
  add(definition: string): string | undefined {
    if (definition === 'help') return 'List of user creatable objects:\n  secret\n';
    const properties = definition.startsWith('{') ? fromJson(definition) : fromList(definition);
    const type = properties.get('qom-type');
    if (type === undefined) throw new Failure("Parameter 'qom-type' is missing");
    if (type === 'secret' && properties.has('help')) {
      return `secret options:\n  data=<string>\n  file=<string>\n  format=<QCryptoSecretFormat>\n  iv=<string>\n  keyid=<string>\n`;
    }
    if (FOREIGN_TYPES.includes(type)) throw new Failure(`invalid object type: ${type}`);
    if (type !== 'secret') throw new Failure(`Parameter 'qom-type' does not accept value '${type}'`);
    this.#addSecret(properties);
    return undefined;
  }

  secret(id: string): Secret | undefined {
    return this.#secrets.get(id);
  }

  #addSecret(properties: ReadonlyMap<string, string>): void {
    const id = properties.get('id');
    if (id === undefined) throw new Failure("Parameter 'id' is missing");
    const format = properties.get('format') ?? 'raw';
    if (format !== 'raw' && format !== 'base64') {
      throw new Failure(`Parameter 'format' does not accept value '${format}'`);
    }
    const surplus = [...properties.keys()].find((name) => !SECRET_PROPERTIES.includes(name));
    if (surplus !== undefined) throw new Failure(`Parameter '${surplus}' is unexpected`);
    if (!/^[a-zA-Z][-._a-zA-Z0-9]*$/.test(id)) {
      throw new Failure("Parameter 'id' expects an identifier", {
        trailer: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.\n",
      });
    }
    if (properties.has('keyid')) throw new Failure("secrets encrypted with another one ('keyid') are not supported");
    const data = secretData(properties.get('data'), properties.get('file'));
    if (this.#secrets.has(id)) {
      throw new Failure(`attempt to add duplicate property '${id}' to object (type 'container')`);
    }
    this.#secrets.set(id, { id, data, format });
  }
}

function secretData(data: string | undefined, file: string | undefined): Uint8Array {
  if (data !== undefined && file !== undefined) throw new Failure("'file' and 'data' are mutually exclusive");
  if (data !== undefined) return new TextEncoder().encode(data);
  if (file === undefined) throw new Failure("Either 'file' or 'data' must be provided");
  try {
    return readFileSync(file);
  } catch (error) {
    const text = ERRNO_TEXT[errnoOf(error)] ?? 'Input/output error';
    throw new Failure(`Unable to read ${file}: Failed to open file “${file}”: ${text}`, { cause: error });
  }
}

/** The first word without `=` is the type. */
function fromList(definition: string): Map<string, string> {
  const properties = new Map<string, string>();
  parseOptionList(definition).forEach(({ name, value }, i) => {
    if (i === 0 && !/^[^,]*=/.test(definition)) properties.set('qom-type', definition.split(',', 1)[0] as string);
    else properties.set(name, value);
  });
  return properties;
}

function fromJson(definition: string): Map<string, string> {
  let parsed: unknown;
  try {
    parsed = JSON.parse(definition);
  } catch (error) {
    throw new Failure('--object: the JSON text is malformed', { cause: error });
  }
  return new Map(Object.entries(parsed as Record<string, unknown>).map(([name, value]) => [name, String(value)]));
}
