/** `npm run bench`: cowdisk and the real qemu-img do the same work in turn (A B A B …), both with default flags; the ratio of each pair is taken,
 *  and the median of these is what counts. Absolute times drift with whatever else a machine does; the ratio of neighbours hardly does.
 *  Options: --runs=N pairs (5), --only=NAME,…, --json, --readme (puts the table into README.md; for a machine that does nothing else).
 *  COWDISK_BENCH_DIR: where the images are kept (some 6 GiB). */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { arch, cpus, release, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { copySparse, KEY, prepareImages } from '../bench/images.mjs';
import {
  build,
  capture,
  ensureDependencies,
  hasProgram,
  isBuilt,
  PROGRAM,
  ROOT,
  readJson,
  requireNode,
} from './lib.mjs';

const MiB = 2 ** 20;
/** Peak memory that no conversion may pass. */
const PEAK_LIMIT = 300 * MiB;

const { values } = parseArgs({
  options: {
    runs: { type: 'string', default: '5' },
    only: { type: 'string' },
    json: { type: 'boolean', default: false },
    readme: { type: 'boolean', default: false },
  },
});
const runs = Number(values.runs);
const directory = process.env.COWDISK_BENCH_DIR ?? join(tmpdir(), 'cowdisk-bench');
const say = (text) => process.stderr.write(`${text}\n`);

requireNode();
if (!hasProgram('qemu-img'))
  fail('the benchmark compares with qemu-img (Debian package qemu-utils), which is not there');
if (!Number.isInteger(runs) || runs < 1) fail('--runs: expected a number above 0');
ensureDependencies();
if (!isBuilt() && (await build()) !== 0) fail('the sources do not compile');
const images = prepareImages(directory, say);
const target = join(directory, 'output');

/** Each job: what both programs are told, the least ratio that is wanted, and what must be true of the outputs. */
const JOBS = [
  conversion('convert-c', 'raw → compressed qcow2', 2.5, images.raw, ['-c', '-f', 'raw', '-O', 'qcow2']),
  conversion('read-c', 'compressed qcow2 → raw', 1.5, images.compressed, ['-f', 'qcow2', '-O', 'raw']),
  conversion('raw-qcow2', 'raw → qcow2', 0.85, images.raw, ['-f', 'raw', '-O', 'qcow2']),
  conversion('qcow2-raw', 'qcow2 → raw', 0.85, images.qcow2, ['-f', 'qcow2', '-O', 'raw']),
  decryption('luks-read', 'luks (AES-256-XTS) → raw', 1.5, luksOptions(images.luks)),
  encryption('luks-write', 'raw → luks (AES-256-XTS) that is there', 1.5, images.luksEmpty, luksOptions),
  decryption('encrypted-read', 'encrypted qcow2 (AES-256-XTS) → raw', 1.5, encryptedOptions(images.encrypted)),
  encryption(
    'encrypted-write',
    'raw → encrypted qcow2 (AES-256-XTS) that is there',
    1.5,
    images.encryptedEmpty,
    encryptedOptions,
  ),
  question('map', 'map of 1 TiB, 1 million clusters', 0.5, ['map', '-f', 'qcow2', '--output=json', images.giant]),
  question('check', 'check of 1 TiB, 1 million clusters', 0.8, ['check', '-f', 'qcow2', images.giant]),
  change('snapshot-create', 'snapshot made of 1 million clusters', 1, images.giant, ['snapshot', '-c', 'new']),
  change('snapshot-delete', 'snapshot of 1 million clusters deleted', 1, images.giantSnapshot, [
    'snapshot',
    '-d',
    'old',
  ]),
  change('repair-refcounts', 'repair of refcounts that are 0', 0.8, images.giantRefcounts, ['check', '-r', 'all']),
  sameDisk(
    'diff',
    '100 GiB, 1 % allocated: diff of qcow2 and raw, which are equal',
    0.8,
    images.sparse,
    images.sparseRaw,
  ),
  sameDisk('diff-overlay', 'the same: diff of an overlay and its base', 1, images.sparseOverlay, images.sparse),
  change('repair-leaks', 'repair of 350,000 leaked clusters', 0.8, images.giantLeaks, ['check', '-r', 'all']),
];

function conversion(name, title, wanted, source, flags) {
  const output = (tool) => `${target}-${tool}`;
  return {
    name,
    title,
    wanted,
    peakLimit: PEAK_LIMIT,
    args: (tool) => ['convert', ...flags, source, output(tool)],
    cleanUp: (tool) => rmSync(output(tool), { force: true }),
    /** Outputs of both are the source, and sound. */
    verify: () => {
      const format = flags.at(-1);
      expectSuccess(['compare', '-f', flags.at(-3), '-F', format, source, output('cowdisk')]);
      if (format !== 'qcow2') return {};
      expectSuccess(['check', '-f', 'qcow2', output('cowdisk')]);
      return { sizes: { qemu: statSync(output('qemu')).size, cowdisk: statSync(output('cowdisk')).size } };
    },
  };
}

/** How both programs are told to open an image with the key. */
function luksOptions(file) {
  return `driver=luks,key-secret=key,file.driver=file,file.filename=${file.replaceAll(',', ',,')}`;
}

function encryptedOptions(file) {
  return `driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,file.driver=file,file.filename=${file.replaceAll(',', ',,')}`;
}

/** An encrypted image of the disk, to raw. */
function decryption(name, title, wanted, options) {
  const output = (tool) => `${target}-${tool}`;
  return {
    name,
    title,
    wanted,
    peakLimit: PEAK_LIMIT,
    args: (tool) => ['convert', ...KEY, '--image-opts', options, '-O', 'raw', output(tool)],
    cleanUp: (tool) => rmSync(output(tool), { force: true }),
    verify: () => {
      expectSuccess(['compare', '-f', 'raw', '-F', 'raw', images.raw, output('cowdisk')]);
      return {};
    },
  };
}

/** The disk into an empty encrypted image. Making one would measure how long qemu-img measures the machine for its key derivation. */
function encryption(name, title, wanted, empty, optionsOf) {
  const copy = (tool) => `${target}-${tool}`;
  return {
    name,
    title,
    wanted,
    peakLimit: PEAK_LIMIT,
    args: (tool) => ['convert', ...KEY, '-n', '-f', 'raw', images.raw, '--target-image-opts', optionsOf(copy(tool))],
    prepare: (tool) => copySparse(empty, copy(tool)),
    cleanUp: (tool) => rmSync(copy(tool), { force: true }),
    verify: () => {
      const raw = `driver=raw,file.driver=file,file.filename=${images.raw.replaceAll(',', ',,')}`;
      expectSuccess(['compare', ...KEY, '--image-opts', raw, optionsOf(copy('cowdisk'))]);
      return {};
    },
  };
}

function question(name, title, wanted, args) {
  const answer = (tool) => `${target}-${tool}.txt`;
  return {
    name,
    title,
    wanted,
    args: () => args,
    output: answer,
    cleanUp: (tool) => rmSync(answer(tool), { force: true }),
    /** Both say the same, word for word. */
    verify: () => {
      if (digest(answer('qemu')) !== digest(answer('cowdisk'))) throw new Error(`${name}: the two answers differ`);
      return {};
    },
  };
}

/** Two images of equal disks: `diff` of ours, and `compare` of QEMU's, which has no diff. Only over equal disks do both have the same work:
 *  `compare` ends at the first difference. */
function sameDisk(name, title, wanted, first, second) {
  const format = (file) => (file.endsWith('.raw') ? 'raw' : 'qcow2');
  const both = ['-f', format(first), '-F', format(second), first, second];
  return {
    name,
    title,
    wanted,
    args: (tool) => [tool === 'qemu' ? 'compare' : 'diff', ...both],
    cleanUp: () => undefined,
    /** Both ended with 0: the disks are the same. */
    verify: () => ({}),
  };
}

/** Each changes a copy of its own, made before. */
function change(name, title, wanted, source, args) {
  const copy = (tool) => `${target}-${tool}.qcow2`;
  return {
    name,
    title,
    wanted,
    args: (tool) => [...args, copy(tool)],
    prepare: (tool) => copySparse(source, copy(tool)),
    cleanUp: (tool) => rmSync(copy(tool), { force: true }),
    /** Both are sound in the eyes of qemu-img. */
    verify: () => {
      for (const tool of ['qemu', 'cowdisk']) expectSuccess(['check', '-f', 'qcow2', copy(tool)]);
      return {};
    },
  };
}

function digest(file) {
  return createHash('sha256').update(readFileSync(file)).digest('hex');
}

function expectSuccess(args) {
  const { status, out, err } = capture('qemu-img', args);
  if (status !== 0) throw new Error(`qemu-img ${args[0]}: ${out}${err}`);
}

function measure(job, tool) {
  const command = tool === 'qemu' ? ['qemu-img'] : [process.execPath, PROGRAM];
  const { out, err } = capture(process.execPath, [
    join(ROOT, 'bench', 'child.mjs'),
    job.output?.(tool) ?? '-',
    ...command,
    ...job.args(tool),
  ]);
  const result = JSON.parse(out === '' ? `{"status":1,"stderr":${JSON.stringify(err)}}` : out);
  if (result.status !== 0) throw new Error(`${job.name}: ${tool} ended with status ${result.status}: ${result.stderr}`);
  return result;
}

function bench(job) {
  const pairs = [];
  let facts = {};
  for (let i = 0; i <= runs; i++) {
    job.cleanUp('qemu');
    job.prepare?.('qemu');
    const qemu = measure(job, 'qemu');
    job.cleanUp('cowdisk');
    job.prepare?.('cowdisk');
    const cowdisk = measure(job, 'cowdisk');
    // The first pair fills the page cache and shows that the outputs are right; it does not count.
    if (i === 0) facts = job.verify();
    else pairs.push({ qemu, cowdisk, ratio: qemu.wall / cowdisk.wall });
    say(
      `${job.name} ${i === 0 ? 'warm-up' : `${i}/${runs}`}: qemu-img ${qemu.wall.toFixed(2)} s, cowdisk ${cowdisk.wall.toFixed(2)} s`,
    );
    if (i === 0 || i === runs) for (const tool of ['qemu', 'cowdisk']) job.cleanUp(tool);
  }
  const of = (tool, key) => median(pairs.map((pair) => pair[tool][key]));
  const cpu = (tool) => median(pairs.map((pair) => pair[tool].user + pair[tool].system));
  const ratios = pairs.map((pair) => pair.ratio).sort((a, b) => a - b);
  return {
    name: job.name,
    title: job.title,
    wanted: job.wanted,
    ratio: median(ratios),
    ratioRange: [ratios[0], ratios.at(-1)],
    wall: { qemu: of('qemu', 'wall'), cowdisk: of('cowdisk', 'wall') },
    cpu: { qemu: cpu('qemu'), cowdisk: cpu('cowdisk') },
    peak: Math.max(...pairs.map((pair) => pair.cowdisk.peak ?? Number.NaN)),
    peakLimit: job.peakLimit,
    ...facts,
  };
}

function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function machine() {
  const koffi = present('koffi');
  return {
    cowdisk: readJson('package.json').version,
    node: process.versions.node,
    qemu: /version (\S+)/.exec(capture('qemu-img', ['--version']).out)?.[1] ?? 'unknown',
    koffi: koffi ?? 'absent: holes are found by reading',
    cpu: `${cpus().length} × ${cpus()[0]?.model ?? arch()}`,
    memory: `${Math.round(totalmem() / 2 ** 30)} GiB`,
    kernel: release().split('-', 1)[0],
    runs,
  };
}

function present(name) {
  const file = join(ROOT, 'node_modules', name, 'package.json');
  try {
    createRequire(import.meta.url)(name);
    return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).version : 'present';
  } catch {
    return undefined;
  }
}

function table(facts, results) {
  const s = (value) => `${value.toFixed(2)} s`;
  const lines = [
    `cowdisk ${facts.cowdisk} on Node ${facts.node} (koffi ${facts.koffi}) against qemu-img ${facts.qemu}, both with default flags;`,
    `${facts.cpu}, ${facts.memory}, Linux ${facts.kernel}; ${facts.runs} pairs of runs in turn, medians.`,
    "The ratio is the median of the pairs' ratios; above 1, cowdisk is faster. The peak is that of cowdisk.",
    '',
    '| job | qemu-img | cowdisk | ratio (lowest to highest pair) | wanted | CPU time: qemu-img, cowdisk | peak memory |',
    '|---|---|---|---|---|---|---|',
    ...results.map((r) => {
      const verdict = r.ratio >= r.wanted ? 'yes' : '**no**';
      const peak = `${Math.round(r.peak / MiB)} MiB${r.peakLimit !== undefined && r.peak > r.peakLimit ? ' **too much**' : ''}`;
      const ratio = `**${r.ratio.toFixed(2)}** (${r.ratioRange[0].toFixed(2)} to ${r.ratioRange[1].toFixed(2)})`;
      return `| ${r.title} | ${s(r.wall.qemu)} | ${s(r.wall.cowdisk)} | ${ratio} | ${r.wanted}: ${verdict} | ${s(r.cpu.qemu)}, ${s(r.cpu.cowdisk)} | ${peak} |`;
    }),
  ];
  const compressed = results.find((r) => r.name === 'convert-c')?.sizes;
  if (compressed !== undefined) {
    const percent = 100 * (compressed.cowdisk / compressed.qemu - 1);
    const difference = `${Math.abs(percent).toFixed(1)} % ${percent < 0 ? 'less' : 'more'}`;
    lines.push(
      '',
      `Size of the compressed image: qemu-img ${(compressed.qemu / MiB).toFixed(1)} MiB, cowdisk ${(compressed.cowdisk / MiB).toFixed(1)} MiB (${difference}).`,
    );
  }
  return lines.join('\n');
}

/** Between the marks that stand there for it. */
function writeReadme(text) {
  const file = join(ROOT, 'README.md');
  const readme = readFileSync(file, 'utf8');
  const [begin, end] = ['<!-- bench -->', '<!-- /bench -->'];
  const [from, to] = [readme.indexOf(begin), readme.indexOf(end)];
  if (from < 0 || to < from) fail(`README.md has no place for it: ${begin} … ${end}`);
  writeFileSync(file, `${readme.slice(0, from + begin.length)}\n\n${text}\n\n${readme.slice(to)}`);
}

function fail(message) {
  console.error(message);
  process.exit(1);
}

/** Reads through old formats against reads of a raw image, both by this library: qemu-img has no cow any more. */
function benchReads() {
  say('reads: cow and add-cow against raw');
  const { out, err, status } = capture(process.execPath, [join(ROOT, 'bench', 'reads.mjs'), directory, String(runs)]);
  if (status !== 0) throw new Error(`reads: ${err}`);
  return JSON.parse(out);
}

function readsTable({ ratios, sparse }) {
  return [
    '',
    'Reads through an image in which everything is allocated, against the same reads of a raw file, both through this library in one process, in turn;',
    'above 1, the image is faster than raw. Wanted: 0.9.',
    '',
    '| read | ratio to raw (lowest to highest pair) | wanted |',
    '|---|---|---|',
    ...ratios.map(({ name, ratios: found }) => {
      const middle = median(found);
      const range = `${found[0].toFixed(2)} to ${found.at(-1).toFixed(2)}`;
      return `| ${name} | **${middle.toFixed(2)}** (${range}) | 0.9: ${middle >= 0.9 ? 'yes' : '**no**'} |`;
    }),
    '',
    `A cow of a 1 TiB disk with 1,000 sectors in it opens and maps (${sparse.extents} extents) in ${Math.round(sparse.milliseconds)} ms; the process grew by ${Math.round(sparse.grownBytes / MiB)} MiB meanwhile, with a cache of 32 MiB.`,
  ].join('\n');
}

/** The checksum against its own hash, both by this library. */
function benchChecksum() {
  say('checksum: against SHA-256 alone');
  const { out, err, status } = capture(process.execPath, [
    join(ROOT, 'bench', 'checksum.mjs'),
    directory,
    String(runs),
  ]);
  if (status !== 0) throw new Error(`checksum: ${err}`);
  return JSON.parse(out);
}

function checksumTable({ cores, bytes, pairs }) {
  const rate = (key) => `${(median(pairs.map((pair) => pair[key])) / 1e9).toFixed(2)} GB/s`;
  const ratios = pairs.map(({ ratio }) => ratio);
  const cpu = median(pairs.map((pair) => pair.cpuAlone / pair.cpuWhole));
  const middle = median(ratios);
  return [
    '',
    `\`checksum\` of ${bytes / MiB} MiB of data in the page cache, against SHA-256 over as many bytes in memory on one thread, in one process, in turn:`,
    `${rate('whole')} against ${rate('alone')}, which is **${middle.toFixed(2)}** (${ratios[0].toFixed(2)} to ${ratios.at(-1).toFixed(2)}) of the hash's own rate on each of ${cores} cores;`,
    `wanted 0.8: ${middle >= 0.8 ? 'yes' : '**no**'}. Of its CPU time, ${Math.round(cpu * 100)} % is what the hash alone takes; the rest is reading.`,
  ].join('\n');
}

const withChecksum = values.only === undefined || values.only.split(',').includes('checksum');
const withReads = values.only === undefined || values.only.split(',').includes('reads');
const chosen = values.only === undefined ? JOBS : JOBS.filter((job) => values.only.split(',').includes(job.name));
if (chosen.length === 0 && !withReads && !withChecksum)
  fail(`--only: the jobs are ${[...JOBS.map((job) => job.name), 'reads', 'checksum'].join(', ')}`);
const facts = machine();
const results = [];
let reads;
let checksum;
try {
  for (const job of chosen) results.push(bench(job));
  if (withReads) reads = benchReads();
  if (withChecksum) checksum = benchChecksum();
} catch (error) {
  fail(String(error.message));
}
const text = [
  table(facts, results),
  ...(reads === undefined ? [] : [readsTable(reads)]),
  ...(checksum === undefined ? [] : [checksumTable(checksum)]),
].join('\n');
if (values.readme) writeReadme(text);
console.log(values.json ? JSON.stringify({ machine: facts, results, reads, checksum }, undefined, 2) : text);
