/** `--object`: the secrets and throttle groups that options refer to by id. Objects of QEMU that nothing here uses are refused by name.
 *  Invariant: ids are unique; the text of a secret never appears in a message. */
import type { GraphObject } from '../core/filter.ts';
import { Failure } from './failure.ts';
import { splitCommas } from './option-list.ts';
import { jsonProblem } from './render/json-problem.ts';
import { secretData } from './secret-data.ts';
import { THROTTLE_GROUP_HELP, throttleGroup, throttleNames } from './throttle-object.ts';

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
  'tls-cipher-suites',
  'tls-creds-anon',
  'tls-creds-psk',
  'tls-creds-x509',
];

const SECRET_PROPERTIES = ['qom-type', 'id', 'loaded', 'data', 'file', 'format', 'keyid', 'iv'];

type Properties = ReadonlyMap<string, unknown>;

/** The objects of one command line. */
export class Objects {
  readonly #secrets = new Map<string, Uint8Array>();
  readonly #graphObjects = new Map<string, GraphObject>();

  /** Takes one `--object`.
   *  @returns text to print instead of going on (`help`), or `undefined`.
   *  @throws {@link Failure} in QEMU's words. */
  add(definition: string): string | undefined {
    if (definition === 'help') return 'List of user creatable objects:\n  secret\n  throttle-group\n';
    const properties = definition.startsWith('{') ? fromJson(definition) : fromList(definition);
    const type = textOf(properties, 'qom-type');
    if (type === undefined) throw new Failure("Parameter 'qom-type' is missing");
    if (type === 'secret' && properties.has('help')) {
      return `secret options:\n  data=<string>\n  file=<string>\n  format=<QCryptoSecretFormat>\n  iv=<string>\n  keyid=<string>\n`;
    }
    if (type === 'throttle-group') {
      if (properties.has('help')) return THROTTLE_GROUP_HELP;
      this.#addThrottleGroup(properties);
      return undefined;
    }
    if (FOREIGN_TYPES.includes(type)) throw new Failure(`invalid object type: ${type}`);
    if (type !== 'secret') throw new Failure(`Parameter 'qom-type' does not accept value '${type}'`);
    this.#addSecret(properties);
    return undefined;
  }

  /** What they hold, by id, as the library takes it. */
  get secrets(): Readonly<Record<string, Uint8Array>> {
    return Object.fromEntries(this.#secrets);
  }

  /** What nodes share, by id. */
  get graphObjects(): ReadonlyMap<string, GraphObject> {
    return this.#graphObjects;
  }

  #addThrottleGroup(properties: Properties): void {
    const id = idOf(properties);
    const names = throttleNames(properties, properties instanceof JsonProperties);
    requireIdentifier(id);
    const group = throttleGroup(names);
    this.#requireNew(id);
    this.#graphObjects.set(id, group);
  }

  #requireNew(id: string): void {
    if (!this.#secrets.has(id) && !this.#graphObjects.has(id)) return;
    throw new Failure(`attempt to add duplicate property '${id}' to object (type 'container')`);
  }

  #addSecret(properties: Properties): void {
    const id = idOf(properties);
    const loaded = requireSwitch(properties, 'loaded');
    const format = textOf(properties, 'format') ?? 'raw';
    if (format !== 'raw' && format !== 'base64') {
      throw new Failure(`Parameter 'format' does not accept value '${format}'`);
    }
    const [keyid, iv, data, file] = ['keyid', 'iv', 'data', 'file'].map((name) => textOf(properties, name));
    const surplus = [...properties.keys()].find((name) => !SECRET_PROPERTIES.includes(name));
    if (surplus !== undefined) throw new Failure(unexpected(surplus));
    requireIdentifier(id);
    if (loaded) throw new Failure("Property 'secret.loaded' is not writable");
    const bytes = secretData({ data, file, format, keyid, iv }, (key) => this.#key(key, id));
    this.#requireNew(id);
    this.#secrets.set(id, bytes);
  }

  #key(keyid: string, id: string): Uint8Array {
    const key = this.#secrets.get(keyid);
    if (key !== undefined) return key;
    throw new Failure(keyid === id ? `Secret with id '${id}' has no data` : `No secret with id '${keyid}'`);
  }
}

function idOf(properties: Properties): string {
  const id = textOf(properties, 'id');
  if (id === undefined) throw new Failure("Parameter 'id' is missing");
  return id;
}

function requireIdentifier(id: string): void {
  if (/^[a-zA-Z][-._a-zA-Z0-9]*$/.test(id)) return;
  throw new Failure("Parameter 'id' expects an identifier", {
    trailer: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.\n",
  });
}

/** QEMU's reader of such lists turns dotted names into objects. */
function unexpected(name: string): string {
  const dot = name.indexOf('.');
  return dot > 0 ? `Parameters '${name.slice(0, dot)}.*' are unexpected` : `Parameter '${name}' is unexpected`;
}

function textOf(properties: Properties, name: string): string | undefined {
  const value = properties.get(name);
  if (value === undefined || typeof value === 'string') return value;
  throw new Failure(`Invalid parameter type for '${name}', expected: string`);
}

/** In lists a word, in JSON a boolean. @returns whether it is given */
function requireSwitch(properties: Properties, name: string): boolean {
  const value = properties.get(name);
  if (value === undefined || typeof value === 'boolean') return value !== undefined;
  if (properties instanceof JsonProperties)
    throw new Failure(`Invalid parameter type for '${name}', expected: boolean`);
  if (value === 'on' || value === 'off') return true;
  throw new Failure(`Parameter '${name}' expects 'on' or 'off'`);
}

class JsonProperties extends Map<string, unknown> {}

/** The first word without `=` is the type; the others need one. */
function fromList(definition: string): Properties {
  const properties = new Map<string, string>();
  splitCommas(definition).forEach((piece, i) => {
    const equals = piece.indexOf('=');
    if (equals > 0) properties.set(piece.slice(0, equals), piece.slice(equals + 1));
    else if (equals === 0 || piece === '') throw new Failure("Invalid parameter ''");
    else if (i === 0) properties.set('qom-type', piece);
    else if (piece === 'help' || piece === '?') properties.set('help', 'on');
    else throw new Failure(`Expected '=' after parameter '${piece}'`);
  });
  return properties;
}

function fromJson(definition: string): Properties {
  let parsed: unknown;
  try {
    parsed = JSON.parse(definition);
  } catch (error) {
    throw new Failure(`JSON parse error, ${jsonProblem(definition)}`, { cause: error });
  }
  return new JsonProperties(Object.entries(parsed as Record<string, unknown>));
}
