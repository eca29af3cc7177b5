/** The rules of the house, as a checker over sources: which file may import which, and what may stand where. Pure: it is given texts and
 *  gives back sentences, so that the rules can be tried on files that do not exist.
 *  Owns the table of floors. Every exception stands here by file name, with its reason. */
import ts from 'typescript';

/** What one rule finds. */
export interface Violation {
  /** Path below `src/`. */
  readonly file: string;
  readonly line: number;
  readonly rule: Rule;
  readonly what: string;
}

export type Rule =
  | 'room'
  | 'downward'
  | 'same-floor'
  | 'faces'
  | 'node'
  | 'platform'
  | 'package'
  | 'isomorphic'
  | 'tools-formats'
  | 'format-name'
  | 'ambient'
  | 'bit-operators'
  | 'side-effect'
  | 'header'
  | 'any'
  | 'suppression'
  | 'extension';

/** Paths below `src/`, to their text. */
export type Sources = ReadonlyMap<string, string>;

/** A room is a directory whose files know each other freely. The floor decides what a room may look down on. */
const FLOORS: Readonly<Record<string, number>> = {
  base: 0,
  bytes: 0,
  core: 1,
  codec: 1,
  crypto: 1,
  nbd: 1,
  storage: 2,
  formats: 2,
  filters: 2,
  image: 3,
  tools: 4,
  server: 4,
  cli: 5,
};

/** The one conditional import, and what stands behind it. It looks down on floor 0 only. */
const CELLAR = 'platform';
/** Outside the floors: they import anything, and only `cli/` and each other import them. */
const FACES = new Set(['index', 'node', 'browser', 'testing']);

/** Rooms of one floor that may know each other all the same. */
const NEIGHBOURS: readonly (readonly [from: string, to: string, why: string])[] = [
  ['base', 'bytes', 'the two halves of floor 0: option bounds need powers of two'],
  ['bytes', 'base', 'the two halves of floor 0: codecs throw typed errors'],
  ['core', 'codec', 'the contract of a format names the compression it is given, as a type'],
  ['codec', 'crypto', 'the threads that compress also encrypt, and are asked in the terms of ciphers, as types'],
];

/** What the cellar knows of the floors above. */
const UPSTAIRS: Readonly<Record<string, { readonly rooms: readonly string[]; readonly why: string }>> = {
  'platform/node/codec-worker.ts': {
    rooms: ['crypto'],
    why: 'a program of its own: it puts together what runs in a worker thread',
  },
  'platform/node/tasks.ts': { rooms: ['crypto'], why: 'the messages to that program, as types' },
};

/** Rooms that may ask `#platform` for what the runtime does better. */
const PLATFORM_USERS = new Set(['codec', 'crypto', 'storage', 'nbd']);

/** Files of `storage/` that are of Node by nature: they may import `node:*` and the Node half of the cellar, and what is isomorphic may not
 *  import them. */
const NODE_STORAGE = new Set(['file', 'file-store', 'fd-io', 'block-device', 'file-locks', 'tcp', 'temporary']);

/** Packages that the library may load, and who may. */
const PACKAGES: Readonly<Record<string, readonly string[]>> = {
  koffi: ['platform/node/'],
  '@bokuweb/zstd-wasm': ['platform/'],
};

/** Clocks, chance and the process: what would make two runs differ, or tie the library to a program. */
const AMBIENT = new Set([
  'console',
  'process',
  'setTimeout',
  'setInterval',
  'setImmediate',
  'clearTimeout',
  'clearInterval',
  'clearImmediate',
  'performance',
]);
const AMBIENT_MEMBERS = new Set(['Date.now', 'Math.random', 'crypto.randomUUID', 'crypto.getRandomValues']);

/** Where single ambient names are right. */
const AMBIENT_ALLOWED: Readonly<Record<string, { readonly names: readonly string[]; readonly why: string }>> = {
  'base/job.ts': {
    names: ['setImmediate', 'setTimeout', 'clearTimeout', 'performance'],
    why: 'long work gives the event loop its turn, and has to know when; the one place that waits',
  },
  'tools/rate-limit.ts': { names: ['performance'], why: 'a rate is bytes over time' },
  'storage/temporary.ts': { names: ['process'], why: 'what is temporary ends with the process' },
  'storage/file.ts': { names: ['process'], why: 'what a file name means differs between systems' },
};

/** Only here are bytes of image files taken apart with operators that work on 32 bits. */
const BIT_FILES = [
  /^bytes\//,
  /^platform\//,
  /^crypto\//,
  /^nbd\//,
  // flags of requests, and of exports
  /^server\//,
  /^codec\//,
  /^cli\//,
  /^formats\/[^/]+\/entries\.ts$/,
  // a hash of names, as QEMU has it
  /^base\/json-text\.ts$/,
  /^base\/random\.ts$/,
  /^formats\/[^/]+\/fuzz[^/]*\.ts$/,
];
/** Flags, never offsets. */
const BIT_FLAGS: Readonly<Record<string, string>> = {
  'formats/qcow2/options.ts': 'overlap-check templates: nine flags of our own',
  'formats/qcow2/check-overlap.ts': 'one of these nine flags',
  'formats/qcow2/features.ts': 'the 64 feature bits, which are bigint',
  'core/permissions.ts': 'sets of four permissions',
  'image/claims.ts': 'such sets',
  'storage/file-locks.ts': 'such sets',
  'filters/write-log.ts': 'the flags of a log entry, which are bigint',
};

/** Files whose loading is an action. */
const SIDE_EFFECTS: Readonly<Record<string, string>> = {
  'platform/node/codec-worker.ts': 'the main module of a worker thread',
};

const ANY_ALLOWED: Readonly<Record<string, string>> = {
  'base/options.ts': 'a schema is a table of different types; OptionsOf recovers each',
  'bytes/struct.ts': 'a table of fields of different types; ValueOf recovers each',
};

/** Checks all sources together. `formatNames` are the names that no tool may compare with. */
export function checkArchitecture(sources: Sources, formatNames: ReadonlySet<string>): Violation[] {
  const violations: Violation[] = [];
  for (const [file, text] of sources) {
    const source = ts.createSourceFile(file, text, ts.ScriptTarget.ES2022, true, ts.ScriptKind.TS);
    new FileCheck(file, text, source, formatNames, violations).run();
  }
  return violations;
}

/** The room of a file: `core`, `formats/qcow2`, `index` for a face; the files directly in `formats/` are a room of their own. */
export function roomOf(file: string): string {
  const parts = file.split('/');
  const first = (parts[0] as string).replace(/\.ts$/, '');
  return first === 'formats' && parts.length > 2 ? `formats/${parts[1]}` : first;
}

function floorOf(room: string): number | undefined {
  return FLOORS[room.split('/')[0] as string];
}

function isOutside(room: string): boolean {
  return FACES.has(room);
}

class FileCheck {
  readonly #file: string;
  readonly #text: string;
  readonly #source: ts.SourceFile;
  readonly #formatNames: ReadonlySet<string>;
  readonly #violations: Violation[];
  readonly #room: string;

  constructor(
    file: string,
    text: string,
    source: ts.SourceFile,
    formatNames: ReadonlySet<string>,
    violations: Violation[],
  ) {
    this.#file = file;
    this.#text = text;
    this.#source = source;
    this.#formatNames = formatNames;
    this.#violations = violations;
    this.#room = roomOf(file);
  }

  run(): void {
    if (!isOutside(this.#room) && this.#room !== CELLAR && floorOf(this.#room) === undefined) {
      this.#tell(0, 'room', `the table of floors has no room '${this.#room}'`);
    }
    if (!/^\/\*\*[\s\S]*?\*\//.test(this.#text)) this.#tell(0, 'header', 'does not begin with a header comment');
    const suppression = /@ts-(ignore|nocheck|expect-error)/.exec(this.#text);
    if (suppression !== null) this.#tell(suppression.index, 'suppression', suppression[0]);
    this.#topLevel();
    this.#visit(this.#source);
  }

  #tell(position: number, rule: Rule, what: string): void {
    const line = this.#source.getLineAndCharacterOfPosition(position).line + 1;
    this.#violations.push({ file: this.#file, line, rule, what });
  }

  #topLevel(): void {
    if (this.#file in SIDE_EFFECTS) return;
    for (const statement of this.#source.statements) {
      const acts = ts.isExpressionStatement(statement) && !ts.isStringLiteral(statement.expression);
      const flows = ts.isIfStatement(statement) || ts.isForStatement(statement) || ts.isForOfStatement(statement);
      const bare = ts.isImportDeclaration(statement) && statement.importClause === undefined;
      if (acts || flows || bare || ts.isTryStatement(statement)) {
        this.#tell(statement.getStart(), 'side-effect', 'does something when it is imported');
      }
    }
  }

  #visit(node: ts.Node): void {
    this.#imports(node);
    if (node.kind === ts.SyntaxKind.AnyKeyword && !(this.#file in ANY_ALLOWED)) {
      this.#tell(node.getStart(), 'any', 'the type any');
    }
    if (ts.isIdentifier(node)) this.#ambient(node);
    if (ts.isBinaryExpression(node)) this.#operator(node);
    if (ts.isCaseClause(node)) this.#formatName(node.expression);
    ts.forEachChild(node, (child) => this.#visit(child));
  }

  // ── imports ──────────────────────────────────────────────────────────────────────────────────

  #imports(node: ts.Node): void {
    if ((ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) && node.moduleSpecifier !== undefined) {
      this.#import(node.moduleSpecifier);
    } else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      this.#import(node.argument.literal);
    } else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) {
      const [what] = node.arguments;
      if (what !== undefined && ts.isStringLiteralLike(what)) this.#import(what);
      else this.#tell(node.getStart(), 'package', 'imports something that is not named');
    }
  }

  #import(node: ts.Node): void {
    if (!ts.isStringLiteralLike(node)) return;
    const name = node.text;
    const position = node.getStart();
    if (name === `#${CELLAR}`) {
      this.#platformImport(position);
    } else if (name.startsWith('node:')) {
      if (!this.#isOfNode()) this.#tell(position, 'node', `imports '${name}'`);
    } else if (name.startsWith('.')) {
      this.#relative(position, name);
    } else if (PACKAGES[name]?.some((prefix) => this.#file.startsWith(prefix)) !== true) {
      this.#tell(position, 'package', `imports the package '${name}'`);
    }
  }

  #platformImport(position: number): void {
    if (isOutside(this.#room) || PLATFORM_USERS.has(this.#room)) return;
    this.#tell(position, 'platform', `imports '#${CELLAR}'`);
  }

  /** Whether the file is for Node alone. */
  #isOfNode(): boolean {
    const { '0': first, '1': second } = this.#file.split('/');
    if (this.#file.startsWith(`${CELLAR}/node/`) || first === 'cli' || this.#file === 'node.ts') return true;
    if (this.#room === 'testing') return true;
    return first === 'storage' && NODE_STORAGE.has((second ?? '').replace(/\.ts$/, ''));
  }

  #relative(position: number, name: string): void {
    if (!/\.(ts|json)$/.test(name)) this.#tell(position, 'extension', `'${name}' lacks its extension`);
    const target = resolvePath(this.#file, name);
    const to = roomOf(target);
    if (target.startsWith('..')) this.#tell(position, 'downward', `imports '${name}' from outside src`);
    else if (to === this.#room) this.#withinRoom(position, target);
    else if (isOutside(to)) this.#face(position, target);
    else if (isOutside(this.#room)) this.#fromFace(position, target);
    else if (to === CELLAR) this.#cellar(position, target);
    else this.#floors(position, to, target);
  }

  /** What is isomorphic must not depend on what is of Node. */
  #withinRoom(position: number, target: string): void {
    if (this.#room !== 'storage' || this.#isOfNode()) return;
    const file = (target.split('/')[1] ?? '').replace(/\.ts$/, '');
    if (NODE_STORAGE.has(file)) this.#tell(position, 'isomorphic', `imports '${target}', which is of Node`);
  }

  #face(position: number, target: string): void {
    if (isOutside(this.#room) || this.#room === 'cli') {
      if (this.#room === 'cli' && roomOf(target) === 'testing') {
        this.#tell(position, 'faces', `the program imports '${target}'`);
      }
      if (this.#file === 'index.ts' || this.#file === 'browser.ts') {
        if (target === 'node.ts') this.#tell(position, 'isomorphic', `imports '${target}', which is of Node`);
      }
      return;
    }
    this.#tell(position, 'faces', `imports the face '${target}'`);
  }

  #fromFace(position: number, target: string): void {
    if (this.#file !== 'index.ts' && this.#file !== 'browser.ts') return;
    const ofNode = target.startsWith(`${CELLAR}/node/`) || target.startsWith('cli/');
    const [first, second = ''] = target.split('/');
    if (ofNode || (first === 'storage' && NODE_STORAGE.has(second.replace(/\.ts$/, '')))) {
      this.#tell(position, 'isomorphic', `imports '${target}', which is of Node`);
    }
  }

  #cellar(position: number, target: string): void {
    const nodeHalf = target.startsWith(`${CELLAR}/node/`);
    if (nodeHalf && this.#isOfNode()) return;
    this.#tell(position, 'platform', `imports '${target}'; '#${CELLAR}' is the way there`);
  }

  #floors(position: number, to: string, target: string): void {
    const mine = this.#room === CELLAR ? 0.5 : floorOf(this.#room);
    const other = floorOf(to);
    if (mine === undefined || other === undefined) return;
    if (this.#room.startsWith('tools') && to.startsWith('formats')) {
      this.#tell(position, 'tools-formats', `imports '${target}'`);
    }
    if (other < mine || UPSTAIRS[this.#file]?.rooms.includes(to) === true) return;
    // The lists of all formats are the places that know several rooms of formats.
    if (/^formats\/all(-fuzz)?\.ts$/.test(this.#file) && to.startsWith('formats/')) return;
    if (other > mine) this.#tell(position, 'downward', `floor ${mine} imports '${target}' from floor ${other}`);
    else if (!NEIGHBOURS.some(([from, known]) => from === this.#room && known === to)) {
      this.#tell(position, 'same-floor', `the room '${this.#room}' imports '${target}'`);
    }
  }

  // ── words ────────────────────────────────────────────────────────────────────────────────────

  #ambient(node: ts.Identifier): void {
    const name = ambientName(node);
    if (name === undefined) return;
    if (this.#room === 'cli' || this.#room === CELLAR || this.#room === 'testing') return;
    if (AMBIENT_ALLOWED[this.#file]?.names.includes(name) === true) return;
    this.#tell(node.getStart(), 'ambient', `uses ${name}`);
  }

  #operator(node: ts.BinaryExpression): void {
    const { kind } = node.operatorToken;
    if (BIT_OPERATORS.has(kind)) this.#bits(node);
    if (!EQUALITY.has(kind)) return;
    this.#formatName(node.left);
    this.#formatName(node.right);
  }

  #bits(node: ts.BinaryExpression): void {
    if (this.#file in BIT_FLAGS || BIT_FILES.some((pattern) => pattern.test(this.#file))) return;
    // On 64-bit flag sets, which are bigint, the operators do what they say.
    if (isBigFlags(node)) return;
    this.#tell(node.getStart(), 'bit-operators', `'${node.operatorToken.getText()}' works on 32 bits`);
  }

  /** A tool that asks for a format by name has missed a capability. */
  #formatName(node: ts.Node): void {
    if (!this.#file.startsWith('tools/')) return;
    if (ts.isStringLiteralLike(node) && this.#formatNames.has(node.text)) {
      this.#tell(node.getStart(), 'format-name', `compares with the format name '${node.text}'`);
    }
  }
}

const BIT_OPERATORS = new Set([
  ts.SyntaxKind.AmpersandToken,
  ts.SyntaxKind.BarToken,
  ts.SyntaxKind.CaretToken,
  ts.SyntaxKind.LessThanLessThanToken,
  ts.SyntaxKind.GreaterThanGreaterThanToken,
  ts.SyntaxKind.GreaterThanGreaterThanGreaterThanToken,
  ts.SyntaxKind.AmpersandEqualsToken,
  ts.SyntaxKind.BarEqualsToken,
  ts.SyntaxKind.CaretEqualsToken,
]);
const EQUALITY = new Set([
  ts.SyntaxKind.EqualsEqualsEqualsToken,
  ts.SyntaxKind.ExclamationEqualsEqualsToken,
  ts.SyntaxKind.EqualsEqualsToken,
  ts.SyntaxKind.ExclamationEqualsToken,
]);

/** Flag sets of 64 bits: bigint literals, or the names that the header's flag fields have. */
function isBigFlags(node: ts.BinaryExpression): boolean {
  const text = node.getText();
  return (
    /\b(0x[0-9a-f]+|\d+)n\b/i.test(text) ||
    /\b(incompatible|compatible|autoclear|INCOMPATIBLE|COMPATIBLE|AUTOCLEAR)/.test(text)
  );
}

/** The forbidden name that an identifier stands for, when it stands for a global at all. */
function ambientName(node: ts.Identifier): string | undefined {
  const { parent } = node;
  if (ts.isPropertyAccessExpression(parent) && parent.name === node) {
    if (parent.expression.getText() === 'globalThis' && AMBIENT.has(node.text)) return node.text;
    const member = `${parent.expression.getText()}.${node.text}`;
    return AMBIENT_MEMBERS.has(member) ? member : undefined;
  }
  if (!AMBIENT.has(node.text)) {
    return node.text === 'Date' && ts.isNewExpression(parent) && (parent.arguments?.length ?? 0) === 0
      ? 'new Date()'
      : undefined;
  }
  const isKey =
    (ts.isPropertyAssignment(parent) || ts.isMethodDeclaration(parent) || ts.isPropertySignature(parent)) &&
    parent.name === node;
  return isKey || ts.isTypeQueryNode(parent) ? undefined : node.text;
}

/** `core/run.ts` and `../base/errors.ts` → `base/errors.ts`. */
function resolvePath(from: string, relative: string): string {
  const parts = from.split('/').slice(0, -1);
  for (const part of relative.split('/')) {
    if (part === '..') {
      if (parts.length === 0 || parts.at(-1) === '..') parts.push('..');
      else parts.pop();
    } else if (part !== '.') parts.push(part);
  }
  return parts.join('/');
}
