#!/usr/bin/env node
// The one program of the package. Called through a link named qemu-img it is qemu-img.
import module from 'node:module';

// Newer Node keeps compiled code between runs; starting is a third faster then.
module.enableCompileCache?.();
const { start } = await import('../dist/program/main.js');
await start();
