// Loads the bundled program, with the compiled code that the build kept of it. V8 checks that the code fits this Node and this source, and
// compiles as usual where it does not.
'use strict';
const { readFileSync } = require('node:fs');
const { createRequire } = require('node:module');
const { dirname, join } = require('node:path');
const { Script } = require('node:vm');

const PROGRAM = join(__dirname, '../dist/program/main.cjs');
const COMPILED = `${PROGRAM}.compiled`;

function load() {
  let cachedData;
  try {
    cachedData = readFileSync(COMPILED);
  } catch {
    // A build in progress, or a package whose files were picked: only the time is lost.
  }
  const source = `(function (exports, require, module, __filename, __dirname) {${readFileSync(PROGRAM, 'latin1')}\n})`;
  const script = new Script(source, { filename: PROGRAM, cachedData });
  const module = { exports: {} };
  script.runInThisContext()(module.exports, createRequire(PROGRAM), module, PROGRAM, dirname(PROGRAM));
  return { program: module.exports, script };
}

module.exports = { COMPILED, load };
