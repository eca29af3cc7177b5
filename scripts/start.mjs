/** `npm start`: the main job on sample images, shown as a person would do it: an old cow file rescued, then a modern chain: what it is, converting,
 *  checking, comparing, the map.
 *  Works on a fresh clone and needs nothing but Node; what it writes goes to out/. */
import { mkdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { pathToFileURL } from 'node:url';
import { gunzipSync } from 'node:zlib';
import {
  build,
  capture,
  ensureDependencies,
  isBuilt,
  PROGRAM,
  ROOT,
  readJson,
  requireNode,
  seconds,
  style,
} from './lib.mjs';

const OUT = join(ROOT, 'out');
const WIDTH = 88;

requireNode();
console.log(style('bold', `cowdisk ${readJson('package.json').version}: its main job, on small sample images`));
await prepare();
const began = performance.now();

unpack('uml-ext2.base.img');
unpack('uml-ext2.cow');
chapter('An old .cow file, opened again', [
  'A User Mode Linux guest wrote uml-ext2.cow over its base and went away. The format had twelve layouts and no specification; QEMU gave it up.',
  'The name in it is from the machine of those days, so we say where the base is now.',
]);
cowdisk('info', '--with-backing', 'out/uml-ext2.base.img', 'out/uml-ext2.cow');
cowdisk('convert', '--with-backing', 'out/uml-ext2.base.img', '-O', 'qcow2', 'out/uml-ext2.cow', 'out/rescued.qcow2');
cowdisk('compare', '--with-backing', 'out/uml-ext2.base.img', 'out/uml-ext2.cow', 'out/rescued.qcow2');

chapter('What is it?', [
  'base.qcow2 is a compressed qcow2 image with an ext4 file system in it.',
  'overlay.qcow2 holds only what was changed since, and asks its backing file for the rest.',
]);
cowdisk('info', 'samples/base.qcow2');
cowdisk('info', '--backing-chain', 'samples/overlay.qcow2');

chapter('To a raw disk, and to a compressed image', [
  'What a guest would read through both layers, flattened. Zeros become holes.',
]);
cowdisk('convert', '-O', 'raw', 'samples/overlay.qcow2', 'out/disk.raw');
sizes('out/disk.raw');
cowdisk('convert', '-c', '-O', 'qcow2', 'samples/overlay.qcow2', 'out/small.qcow2');
sizes('out/small.qcow2');

chapter('Is it sound, and is it the same?', [
  'check counts every reference to every cluster; compare reads both disks as a guest would.',
]);
cowdisk('check', 'out/small.qcow2');
cowdisk('compare', 'samples/overlay.qcow2', 'out/small.qcow2');
cowdisk('compare', '-f', 'raw', '-F', 'qcow2', 'out/disk.raw', 'out/small.qcow2');

chapter('Where does the data lie?', [
  'Depth 0 is the overlay itself, depth 1 its backing file; what is not present in either reads as zeros.',
]);
cowdisk('map', '--output=json', 'samples/overlay.qcow2');

chapter('The same from a program', ['The label of the ext4 file system, read through the chain of images:']);
await library();

console.log(
  `\n${style('green', 'Done')} in ${seconds(performance.now() - began)}. The rescued disk and two more were written to out/.`,
);
next();

async function prepare() {
  const start = performance.now();
  const dependencies = ensureDependencies();
  const built = isBuilt() ? 'there already' : undefined;
  if (built === undefined && (await build()) !== 0) {
    console.error('the sources do not compile; see above');
    process.exit(1);
  }
  console.log(
    style('dim', `dependencies: ${dependencies}; build: ${built ?? 'made'} (${seconds(performance.now() - start)})`),
  );
  rmSync(OUT, { recursive: true, force: true });
  mkdirSync(OUT);
}

/** The recorded time of change is part of what a cow file knows of its base. */
function unpack(name) {
  const file = join(OUT, name);
  writeFileSync(file, gunzipSync(readFileSync(join(ROOT, 'samples', `${name}.gz`))));
  utimesSync(file, 1_700_000_000, 1_700_000_000);
}

function chapter(title, lines) {
  console.log(`\n${style('bold', `── ${title} ${'─'.repeat(WIDTH - title.length - 4)}`)}`);
  for (const line of lines) console.log(line);
}

/** Runs the program as a person would, and shows it. */
function cowdisk(...args) {
  console.log(`\n${style('cyan', `$ npx cowdisk ${args.join(' ')}`)}`);
  const start = performance.now();
  const { status, out, err } = capture(process.execPath, [PROGRAM, ...args]);
  const time = performance.now() - start;
  const said = (out + err).trimEnd();
  if (said !== '') for (const line of said.split('\n')) console.log(line === '' ? '' : `  ${line}`);
  if (status !== 0) {
    console.error(style('red', `  exit status ${status}`));
    process.exit(1);
  }
  console.log(style('dim', `  (${Math.round(time)} ms)`));
}

function sizes(name) {
  const { size, blocks } = statSync(join(ROOT, name));
  const text = blocks === undefined ? '' : `, ${kib(blocks * 512)} of them on disk`;
  console.log(`  → ${relative(ROOT, join(ROOT, name))}: ${kib(size)}${text}`);
}

function kib(bytes) {
  return `${Math.round(bytes / 1024)} KiB`;
}

async function library() {
  const { openImage } = await import(pathToFileURL(join(ROOT, 'dist/node.js')).href);
  const lines = [
    `await using disk = await openImage('samples/overlay.qcow2', { references: 'same-directory' });`,
    'const label = await disk.read(1024 + 120, 16);',
  ];
  console.log('');
  for (const line of lines) console.log(`  ${style('cyan', line)}`);
  const disk = await openImage(join(ROOT, 'samples/overlay.qcow2'), { references: 'same-directory' });
  try {
    const label = await disk.read(1024 + 120, 16);
    console.log(`  → '${new TextDecoder().decode(label).replace(/\0+$/, '')}'`);
  } finally {
    await disk.close();
  }
}

function next() {
  const lines = [
    ['npx cowdisk help', 'all commands'],
    ['npx cowdisk create -f qcow2 -b ../samples/base.qcow2 -F qcow2 out/mine.qcow2', 'an overlay of your own'],
    ['npx cowdisk convert -p -O raw SOME.qcow2 out/some.raw', 'an image of yours'],
    ['npm test', 'everything that is tested'],
    ['docs/README.md', 'the documentation'],
  ];
  console.log('\nTo try next:');
  for (const [command, does] of lines) console.log(`  ${style('cyan', command)}\n      ${does}`);
}
