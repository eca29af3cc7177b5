// Runs the program once and keeps V8's compiled code of what ran, for the next starts (bin/cowdisk.js).
'use strict';
const { writeFileSync } = require('node:fs');
const { COMPILED, load } = require('../bin/load.js');

const { program, script } = load();
process.on('exit', () => writeFileSync(COMPILED, script.createCachedData()));
void program.start();
