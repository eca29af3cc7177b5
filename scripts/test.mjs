/** `npm test`: installs what is missing, builds, lints, checks types, and runs every test. `--long` (`npm run test:long`) runs the long ones too.
 *  Further arguments go to vitest: `npm test -- test/formats`.
 *  Where qemu-img is missing, the tests against it are skipped and that is said; with CI=true it is a failure. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  build,
  capture,
  childEnvironment,
  ensureDependencies,
  hasProgram,
  Phases,
  requireNode,
  run,
  style,
} from './lib.mjs';

/** Programs that tests run, the Debian package that has each, and what is not tested without it; `long`: by the long tests alone,
 *  `arch`: the only processor that Debian has it for. */
const PEERS = [
  {
    program: 'qemu-img',
    package: 'qemu-utils',
    tests: 'every comparison with the real qemu-img (test/interop and others)',
  },
  { program: 'qemu-io', package: 'qemu-utils', tests: 'images written by the real QEMU' },
  { program: 'nbdinfo', package: 'libnbd-bin', tests: 'the NBD server, with clients that others have written' },
  { program: 'nbdcopy', package: 'libnbd-bin', tests: 'the same' },
  { program: 'nbdsh', package: 'python3-libnbd', tests: 'the same' },
  { program: 'uml_moo', package: 'uml-utilities', tests: 'cow files merged by their own tool' },
  { program: 'uml_mkcow', package: 'uml-utilities', tests: 'cow files made by their own tool' },
  {
    program: 'linux.uml',
    package: 'user-mode-linux',
    tests: 'cow files under a running User Mode Linux',
    long: true,
    arch: 'x64',
  },
  { program: 'busybox', package: 'busybox-static', tests: 'the same', long: true, arch: 'x64' },
];

requireNode();
const args = process.argv.slice(2);
const long = args.includes('--long');
const rest = args.filter((arg) => arg !== '--long');
const ci = (process.env.CI ?? '') !== '' && process.env.CI !== 'false';
const phases = new Phases();
const failures = [];

await phases.run('dependencies', () => console.log(ensureDependencies()));
await phases.run('system packages', systemPackages);
if ((await phases.run('build', build)) !== 0) end(['build']);
await phases.run('lint', () =>
  check('lint', ['node_modules/@biomejs/biome/bin/biome', 'check', '--error-on-warnings', '.']),
);
await phases.run('types', () => check('types', ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.json']));
const counts = await phases.run(long ? 'tests, the long ones too' : 'tests', tests);
end(failures, counts);

/** Installs or names the programs that tests compare with. */
async function systemPackages() {
  const wanted = PEERS.filter((peer) => (long || !peer.long) && (peer.arch ?? process.arch) === process.arch);
  const lacking = () => wanted.filter((peer) => !hasProgram(peer.program));
  let missing = lacking();
  if (missing.length > 0 && process.getuid?.() === 0 && hasProgram('apt-get')) {
    await run('bash', ['scripts/apt.sh', ...new Set(missing.map((peer) => peer.package))], { env: process.env });
    missing = lacking();
  }
  for (const peer of missing) {
    console.log(`${peer.program} is missing (Debian package ${peer.package}); not tested without it: ${peer.tests}`);
  }
  if (missing.length > 0 && ci) failures.push(`${missing.map((peer) => peer.program).join(', ')} missing under CI`);
  if (missing.length === 0) console.log(capture('qemu-img', ['--version']).out.split('\n', 1)[0]);
}

async function check(name, command) {
  if ((await run(process.execPath, command)) !== 0) failures.push(name);
}

async function tests() {
  const directory = mkdtempSync(join(tmpdir(), 'cowdisk-test-'));
  const report = join(directory, 'report.json');
  try {
    const status = await run(
      process.execPath,
      [
        'node_modules/vitest/vitest.mjs',
        'run',
        '--reporter=default',
        '--reporter=json',
        `--outputFile.json=${report}`,
        ...rest,
      ],
      { env: childEnvironment(long ? { COWDISK_LONG: '1' } : {}) },
    );
    if (status !== 0) failures.push('tests');
    if (!existsSync(report)) return undefined;
    const { numPassedTests, numFailedTests, numPendingTests, numTodoTests } = JSON.parse(readFileSync(report, 'utf8'));
    return { passed: numPassedTests, failed: numFailedTests, skipped: numPendingTests + numTodoTests };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function end(failed, result) {
  console.log(`\n${phases.summary()}`);
  if (failed.length > 0) console.log(style('red', `failed: ${failed.join(', ')}`));
  if (result !== undefined) {
    const skipped = result.skipped === 0 ? '' : `, ${result.skipped} skipped`;
    console.log(`${result.passed} passed, ${result.failed} failed${skipped}`);
  }
  process.exit(failed.length > 0 ? 1 : 0);
}
