/** docs/reference/errors.md: the codes, and every reason that the sources can throw, found by following `reason:` through the functions that
 *  make errors to the places that call them. */
import ts from 'typescript';
import { cell, GENERATED } from './program.mjs';

/** @returns the page, and all reasons of errors and of check findings. */
export function errorsPage(program) {
  const rows = new ReasonFinder(program).find();
  const errors = rows.filter((row) => row.kind === 'error');
  const findings = rows.filter((row) => row.kind === 'finding');
  const events = rows.filter((row) => row.kind === 'event');
  const lines = [
    '# Errors',
    '',
    GENERATED,
    '',
    'Everything that this library throws on purpose is a `BlockError`. `code` says what kind of failure it is, `reason` which one exactly; both are',
    'stable, and programs branch on them. `message` is for people and may change; `details` holds the facts (names, offsets, bounds), `cause` the',
    'error behind. `isBlockError(value)` recognises errors of every copy of the library. ‹words› stand for values.',
    '',
    '## Codes',
    '',
    '| code | meaning |',
    '|---|---|',
    ...errorCodes(program).map(([code, meaning]) => `| \`${code}\` | ${cell(meaning)} |`),
    '',
    '## Reasons',
    '',
    ...byRoom(errors).flatMap(([room, list]) => [
      `### ${room}`,
      '',
      '| reason | code | message |',
      '|---|---|---|',
      ...list.map((row) => `| \`${row.reason}\` | ${row.codes} | ${cell(row.message)} |`),
      '',
    ]),
    '## Findings of a check',
    '',
    'Not thrown but told, one by one, to `onFinding`; the messages are the lines that `qemu-img check` prints.',
    '',
    '| reason | message |',
    '|---|---|',
    ...findings.map((row) => `| \`${row.reason}\` | ${cell(row.message)} |`),
    '',
    '## Warnings',
    '',
    'Told as events of type `warning` (`image.on`, `onEvent`).',
    '',
    '| reason | message |',
    '|---|---|',
    ...events.map((row) => `| \`${row.reason}\` | ${cell(row.message)} |`),
  ];
  return { text: `${lines.join('\n')}\n`, reasons: new Set(rows.map((row) => row.reason)) };
}

function byRoom(rows) {
  const rooms = new Map();
  for (const row of rows) {
    const room = row.reason.split('.', 1)[0];
    rooms.set(room, [...(rooms.get(room) ?? []), row]);
  }
  return [...rooms];
}

/** The members of `ErrorCode` and the comments behind them. */
function errorCodes(program) {
  const source = program.getSourceFiles().find((file) => file.fileName.endsWith('/src/base/errors.ts'));
  const body = /export type ErrorCode =\n([\s\S]*?);/.exec(source.text)[1];
  const end = source.text.slice(source.text.indexOf(body) + body.length);
  const all = body + end.slice(0, end.indexOf('\n'));
  return [...all.matchAll(/\| '([A-Z_]+)';? ?\/\/ (.*)/g)].map(([, code, meaning]) => [code, meaning]);
}

const UNKNOWN = '…';
/** More codes than this mean that the system decides. */
const MANY_CODES = 6;

class ReasonFinder {
  #program;
  #checker;
  /** Declarations of functions, to the calls of them. */
  #calls = new Map();
  #rows = new Map();

  constructor(program) {
    this.#program = program;
    this.#checker = program.getTypeChecker();
  }

  find() {
    const files = this.#program.getSourceFiles().filter((file) => {
      return !file.isDeclarationFile && /\/src\/(?!testing|cli)/.test(file.fileName);
    });
    for (const file of files) visit(file, (node) => this.#indexCall(node));
    for (const file of files) visit(file, (node) => this.#reasonProperty(node));
    return joinAlternatives([...this.#rows.values()]).sort(
      (a, b) => compare(a.reason, b.reason) || compare(a.message, b.message) || compare(a.codes, b.codes),
    );
  }

  #indexCall(node) {
    if (!ts.isCallExpression(node)) return;
    const declaration = this.#checker.getResolvedSignature(node)?.declaration;
    if (declaration === undefined) return;
    this.#calls.set(declaration, [...(this.#calls.get(declaration) ?? []), node]);
  }

  #reasonProperty(node) {
    const isPair = ts.isPropertyAssignment(node) && node.name.getText() === 'reason';
    const isShort = ts.isShorthandPropertyAssignment(node) && node.name.text === 'reason';
    if ((!isPair && !isShort) || !ts.isObjectLiteralExpression(node.parent)) return;
    const value = isPair ? node.initializer : node.name;
    const object = node.parent;
    const use = this.#useOf(object);
    if (use === undefined) return;
    for (const env of this.#environments(node)) {
      for (const reason of this.#values(value, env)) {
        if (!/^[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9.-]+)?$/.test(reason)) continue;
        this.#add(use, reason, env);
      }
    }
  }

  /** What an object with a reason is for. */
  #useOf(object) {
    const { parent } = object;
    if (ts.isNewExpression(parent) && parent.expression.getText() === 'BlockError') {
      return { kind: 'error', code: parent.arguments[0], message: parent.arguments[1] };
    }
    const property = (name) =>
      object.properties.find(
        (entry) =>
          entry.name?.getText() === name && (ts.isPropertyAssignment(entry) || ts.isShorthandPropertyAssignment(entry)),
      );
    const expressionOf = (name) => {
      const entry = property(name);
      return entry === undefined ? undefined : (entry.initializer ?? entry.name);
    };
    if (property('type') !== undefined) return { kind: 'event', message: expressionOf('message') };
    if (property('kind') !== undefined) return { kind: 'finding', message: expressionOf('message') };
    const refused = property('unsupported') !== undefined;
    const isDefinition =
      ts.isCallExpression(parent) && /^(size|int|bool|text|choice)$/.test(parent.expression.getText());
    return refused || isDefinition ? { kind: 'option', refused } : undefined;
  }

  #add(use, reason, env) {
    const message = use.message === undefined ? '' : this.#text(use.message, env);
    let row = { kind: use.kind, reason, codes: '', message, site: use.message };
    if (use.kind === 'option') {
      const [code, text] = use.refused
        ? ['UNSUPPORTED', 'option ‹name› is not supported yet']
        : ['OPTION', "option ‹name›: expected ‹wanted›, not '‹value›'"];
      row = { kind: 'error', reason, codes: `\`${code}\``, message: text };
    } else if (use.kind === 'error') {
      const codes = [...new Set(this.#values(use.code, env))].filter((code) => code !== UNKNOWN);
      row.codes =
        codes.length === 0 || codes.length > MANY_CODES
          ? 'that of the cause'
          : codes.map((code) => `\`${code}\``).join(', ');
    }
    this.#rows.set(`${row.kind} ${reason} ${row.codes} ${row.message}`, row);
  }

  /** The functions around `node` as they are called: for each call, the arguments behind the parameters. */
  #environments(node, depth = 0) {
    const around = ts.findAncestor(node.parent, (at) => ts.isFunctionLike(at));
    if (around === undefined || depth > 3) return [new Map()];
    const outer = this.#environments(around, depth);
    const calls = (this.#calls.get(around) ?? []).filter(() => this.#mattersFor(around));
    if (calls.length === 0) return outer;
    return calls.flatMap((call) =>
      this.#environments(call, depth + 1).map((callers) => {
        const env = new Map(outer[0]);
        around.parameters.forEach((parameter, index) => {
          const given = call.arguments[index] ?? parameter.initializer;
          if (given !== undefined) env.set(parameter, { expression: given, env: callers });
        });
        return env;
      }),
    );
  }

  /** Only functions that make errors of what they are told are followed to their callers. */
  #mattersFor(around) {
    return around.parameters.some((parameter) =>
      /^(reason|finding|what|code|detail|message|why)$/.test(parameter.name.getText()),
    );
  }

  #declarationOf(node) {
    const short = ts.isShorthandPropertyAssignment(node.parent) && node.parent.name === node;
    const symbol = short
      ? this.#checker.getShorthandAssignmentValueSymbol(node.parent)
      : this.#checker.getSymbolAtLocation(node);
    return symbol?.valueDeclaration;
  }

  #parameterOf(node) {
    const declaration = this.#declarationOf(node);
    return declaration !== undefined && ts.isParameter(declaration) ? declaration : undefined;
  }

  /** Every string that an expression can be. */
  #values(node, env) {
    if (node === undefined) return [];
    if (ts.isStringLiteralLike(node)) return [node.text];
    if (ts.isParenthesizedExpression(node) || ts.isAsExpression(node)) return this.#values(node.expression, env);
    if (ts.isConditionalExpression(node))
      return [...this.#values(node.whenTrue, env), ...this.#values(node.whenFalse, env)];
    if (ts.isBinaryExpression(node) && node.operatorToken.kind === ts.SyntaxKind.QuestionQuestionToken) {
      return [...this.#values(node.left, env), ...this.#values(node.right, env)];
    }
    if (ts.isTemplateExpression(node)) {
      return node.templateSpans.reduce(
        (heads, span) =>
          heads.flatMap((head) => this.#values(span.expression, env).map((value) => head + value + span.literal.text)),
        [node.head.text],
      );
    }
    if (ts.isIdentifier(node)) {
      const parameter = this.#parameterOf(node);
      const given = parameter === undefined ? undefined : env.get(parameter);
      if (given !== undefined) return this.#values(given.expression, given.env);
      const declaration = this.#declarationOf(node);
      if (declaration !== undefined && ts.isVariableDeclaration(declaration) && declaration.initializer !== undefined) {
        return this.#values(declaration.initializer, env);
      }
    }
    const type = this.#checker.getTypeAtLocation(node);
    const types = type.isUnion() ? type.types : [type];
    if (types.every((part) => part.isStringLiteral())) return types.map((part) => part.value);
    return [UNKNOWN];
  }

  /** What a function of one sentence makes. */
  #textOfCall(node, env) {
    const declaration = this.#checker.getResolvedSignature(node)?.declaration;
    const statements = declaration?.body?.statements;
    if (statements?.length !== 1 || !ts.isReturnStatement(statements[0]) || statements[0].expression === undefined)
      return undefined;
    const { expression } = statements[0];
    if (!ts.isTemplateExpression(expression) || expression.head.text.length < 8) return undefined;
    const inner = new Map();
    declaration.parameters.forEach((parameter, index) => {
      const given = node.arguments[index];
      if (given !== undefined) inner.set(parameter, { expression: given, env });
    });
    return this.#text(expression, inner);
  }

  /** A message as people read it, its values in ‹›. */
  #text(node, env) {
    if (ts.isStringLiteralLike(node)) return node.text;
    if (ts.isParenthesizedExpression(node)) return this.#text(node.expression, env);
    if (ts.isTemplateExpression(node)) {
      return (
        node.head.text + node.templateSpans.map((span) => this.#text(span.expression, env) + span.literal.text).join('')
      );
    }
    if (ts.isConditionalExpression(node)) {
      const [yes, no] = [this.#text(node.whenTrue, env), this.#text(node.whenFalse, env)];
      if (yes === no) return yes;
      return yes === '' || no === '' ? `[${yes}${no}]` : `(${yes} / ${no})`;
    }
    if (ts.isBinaryExpression(node) && node.operatorToken.kind === ts.SyntaxKind.PlusToken) {
      return this.#text(node.left, env) + this.#text(node.right, env);
    }
    if (ts.isIdentifier(node)) {
      const parameter = this.#parameterOf(node);
      const given = parameter === undefined ? undefined : env.get(parameter);
      if (given !== undefined && isText(given.expression)) return this.#text(given.expression, given.env);
      const type = this.#checker.getTypeAtLocation(node);
      if (type.isNumberLiteral()) return String(type.value);
    }
    if (ts.isCallExpression(node)) {
      const made = this.#textOfCall(node, env);
      if (made !== undefined) return made;
    }
    return `‹${wordFor(node)}›`;
  }
}

function isText(node) {
  return (
    ts.isStringLiteralLike(node) ||
    ts.isTemplateExpression(node) ||
    ts.isIdentifier(node) ||
    ts.isConditionalExpression(node) ||
    ts.isCallExpression(node)
  );
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Words longer than this are not alternatives of one message. */
const LONGEST_ALTERNATIVE = 24;

/** Messages that one place makes and that differ in one word or two become one row. */
function joinAlternatives(rows) {
  const places = new Map();
  for (const row of rows) {
    const key =
      row.site === undefined
        ? row
        : `${row.kind} ${row.reason} ${row.codes} ${row.site.getSourceFile().fileName} ${row.site.pos}`;
    places.set(key, [...(places.get(key) ?? []), row]);
  }
  return [...places.values()].flatMap((list) => joined(list) ?? list);
}

function joined(rows) {
  if (rows.length < 2) return undefined;
  const texts = rows.map((row) => row.message.split(' '));
  const shortest = Math.min(...texts.map((text) => text.length));
  let [head, tail] = [0, 0];
  while (head < shortest && texts.every((text) => text[head] === texts[0][head])) head++;
  while (tail < shortest - head && texts.every((text) => text.at(-1 - tail) === texts[0].at(-1 - tail))) tail++;
  const middles = texts.map((text) => text.slice(head, text.length - tail).join(' ')).sort(compare);
  if (head + tail === 0 || middles.some((text) => text.length > LONGEST_ALTERNATIVE || text.includes('‹')))
    return undefined;
  const before = texts[0].slice(0, head).join(' ');
  const after = tail === 0 ? '' : texts[0].slice(-tail).join(' ');
  const message = [before, `(${middles.join(' / ')})`, after].filter((part) => part !== '').join(' ');
  return [{ ...rows[0], message }];
}

/** A word for a value: the name of the variable or property that holds it. */
function wordFor(node) {
  if (ts.isIdentifier(node)) return words(node.text);
  if (ts.isPropertyAccessExpression(node)) return words(node.name.text);
  if (ts.isCallExpression(node)) {
    const [first] = node.arguments;
    if (first !== undefined) return wordFor(first);
    return wordFor(node.expression);
  }
  if (ts.isBinaryExpression(node)) return wordFor(node.left);
  if (ts.isPrefixUnaryExpression(node) || ts.isNonNullExpression(node) || ts.isAsExpression(node)) {
    return wordFor(node.operand ?? node.expression);
  }
  return 'value';
}

function words(name) {
  if (/^[A-Z0-9_]+$/.test(name)) return name.toLowerCase().replaceAll('_', ' ');
  return name
    .replace(/^#/, '')
    .replace(/([a-z0-9])([A-Z])/g, (_, before, letter) => `${before} ${letter.toLowerCase()}`);
}

function visit(node, act) {
  act(node);
  ts.forEachChild(node, (child) => visit(child, act));
}
