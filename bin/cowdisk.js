#!/usr/bin/env node
// The one program of the package. Called through a link named qemu-img it is qemu-img.
'use strict';
void require('./load.js').load().program.start();
