/** Boots a real User Mode Linux guest on disks of ours and has it run a shell script, as an ordinary user could by hand.
 *
 *    node scripts/uml/guest.mjs [--file NAME=PATH]… [--time SECONDS] [--memory SIZE] [--console FILE] JOB [DISK]…
 *    node scripts/uml/guest.mjs --probe
 *
 *  JOB is a shell script for busybox, run by `sh -e -o pipefail`. DISK is what UML takes for ubd0, ubd1, …: an image, a cow file (its header names the
 *  backing file), or COW,BACKING; in the guest they are /dev/ubda, /dev/ubdb, …. `--file` puts a file into the guest's root directory.
 *  Standard output is what the job printed; `--console` keeps what the kernel said; after a failure its end goes to standard error.
 *
 *  Exit status: 0 the job ended well and the guest halted; 1 the job failed, or the guest died; 2 wrong call; 3 UML does not run on this
 *  machine (the reason on standard error); 4 a program is missing; 5 the time was up. `--probe` runs an empty job.
 *
 *  Needs Debian's user-mode-linux and busybox-static; no root. Leaves nothing behind but what the job wrote to the disks. */
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { hasProgram } from '../lib.mjs';
import { initramfs, staticBusybox } from './initramfs.mjs';

const STATUS = { done: 0, failed: 1, usage: 2, cannotRun: 3, missing: 4, timeUp: 5 };
/** Lines of the console that are shown after a failure. */
const TAIL = 25;
/** What the kernel says when the archive is at fault, and not the machine; at last, that the first process ended by itself. */
const OUR_FAULT =
  /Failed to execute \/init|No working init found|Unable to mount root|Initramfs unpacking failed|kill init! exitcode=0x0000[0-9a-f]{2}00/;
/** With less, the limit on threads that Linux derives from it is sometimes met while booting. */
const MEMORY = '128M';

class GuestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Boots the guest. Ends when the guest has, or when the time was up and all its processes are gone.
 *  @param disks as on the command line
 *  @returns `{ output, console }`: what the job printed, and everything
 *  @throws GuestError with the exit status of the command line */
async function runGuest({ job, disks = [], files = [], seconds = 120, memory = MEMORY, onConsole = () => {} }) {
  const busybox = requirePrograms();
  const directory = mkdtempSync(join(tmpdir(), 'cowdisk-uml-'));
  try {
    const archive = join(directory, 'initramfs.cpio');
    writeFileSync(archive, initramfs(busybox, job, files));
    const args = [
      `mem=${memory}`,
      `initrd=${archive}`,
      // its control socket: by default below $HOME
      `uml_dir=${directory}`,
      'con0=null,fd:1',
      'con=null',
      'ssl=null',
      ...disks.map((disk, index) => `ubd${index}=${disk.split(',').map(absolute).join(',')}`),
    ];
    // The guest's memory is a file there that it must be allowed to execute; /dev/shm, its own choice, often forbids that or is small.
    const ended = await runLimited('linux.uml', args, { PATH: process.env.PATH, TMPDIR: directory }, seconds);
    onConsole(ended.console);
    return judge(ended, seconds);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function absolute(path) {
  return resolve(path);
}

/** @returns the path of busybox. @throws GuestError */
function requirePrograms() {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new GuestError(
      STATUS.cannotRun,
      `Debian has User Mode Linux for Linux on x86-64, and this is ${process.platform} on ${process.arch}`,
    );
  }
  const busybox = staticBusybox();
  const missing = [
    ...(hasProgram('linux.uml') ? [] : ['linux.uml (Debian package user-mode-linux)']),
    ...(busybox === undefined ? ['a statically linked busybox (Debian package busybox-static)'] : []),
  ];
  if (missing.length > 0) throw new GuestError(STATUS.missing, `missing: ${missing.join(', ')}`);
  return busybox;
}

/** Runs a program in a process group of its own, which is killed when the time is up: UML is a group of processes that trace each other. */
function runLimited(command, args, env, seconds) {
  return new Promise((done) => {
    const child = spawn(command, args, { env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
    const pieces = [];
    let timeUp = false;
    let failure;
    const killGroup = () => {
      try {
        process.kill(-child.pid, 'SIGKILL');
      } catch (error) {
        if (error.code !== 'ESRCH') throw error;
      }
    };
    const timer = setTimeout(() => {
      timeUp = true;
      killGroup();
    }, seconds * 1000);
    const interrupted = () => {
      killGroup();
      process.exit(130);
    };
    for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, interrupted);
    child.stdout.on('data', (bytes) => pieces.push(bytes));
    child.stderr.on('data', (bytes) => pieces.push(bytes));
    child.on('error', (error) => {
      failure = error;
    });
    // A guest that died may leave its traced processes behind, which hold the pipes open.
    child.on('exit', killGroup);
    child.on('close', (status, signal) => {
      clearTimeout(timer);
      for (const name of ['SIGINT', 'SIGTERM']) process.removeListener(name, interrupted);
      const text = Buffer.concat(pieces).toString('latin1').replaceAll('\r', '');
      done({ console: text, status, signal, timeUp, failure });
    });
  });
}

/** What became of the guest, from what it said. */
function judge({ console: text, status, signal, timeUp, failure }, seconds) {
  const lines = text.split('\n');
  const tail = lines.slice(-TAIL).join('\n');
  const output = lines
    .filter((line) => line.startsWith('job: '))
    .map((line) => `${line.slice(5)}\n`)
    .join('');
  const how = signal === null ? `status ${status}` : `signal ${signal}`;
  const fail = (code, message) => Object.assign(new GuestError(code, `${message}\n${tail}`), { output });

  if (failure !== undefined) throw new GuestError(STATUS.cannotRun, `linux.uml does not start: ${failure.message}`);
  if (!lines.includes('guest is up')) {
    if (OUR_FAULT.test(text)) throw fail(STATUS.failed, 'the guest found no first process that runs');
    const reason = timeUp ? `it was not up after ${seconds} s` : `it ended with ${how} before its first process ran`;
    throw fail(STATUS.cannotRun, `User Mode Linux does not run here: ${reason}`);
  }
  if (timeUp) throw fail(STATUS.timeUp, `the guest did not halt within ${seconds} s`);
  const ended = lines.map((line) => /^job ended: (\d+)$/.exec(line)?.[1]).find((found) => found !== undefined);
  if (ended === undefined) throw fail(STATUS.failed, `the guest died (${how}) before the job ended`);
  if (ended !== '0') throw fail(STATUS.failed, `the job failed with status ${ended}`);
  if (status !== 0 || !/^reboot: System halted$/m.test(text))
    throw fail(STATUS.failed, `the guest did not halt (${how})`);
  return { output, console: text };
}

function usage(message) {
  return new GuestError(
    STATUS.usage,
    `${message}\nusage: guest.mjs [--file NAME=PATH]… [--time SECONDS] [--memory SIZE] [--console FILE] JOB [DISK]… | --probe`,
  );
}

function parseCommand() {
  const options = {
    file: { type: 'string', multiple: true, default: [] },
    time: { type: 'string', default: '120' },
    memory: { type: 'string', default: MEMORY },
    console: { type: 'string' },
    probe: { type: 'boolean', default: false },
  };
  let parsed;
  try {
    parsed = parseArgs({ options, allowPositionals: true });
  } catch (error) {
    throw usage(error.message);
  }
  const { values, positionals } = parsed;
  const seconds = Number(values.time);
  if (!(seconds > 0)) throw usage(`--time ${values.time}: not a number of seconds`);
  const [job, ...disks] = positionals;
  if ((job === undefined) !== values.probe) throw usage(values.probe ? '--probe takes no job' : 'which job?');
  const files = values.file.map((text) => {
    const [, name, path] = /^([\w.-]+)=(.+)$/.exec(text) ?? [];
    if (name === undefined) throw usage(`--file ${text}: not NAME=PATH`);
    return [name, readFileSync(path)];
  });
  return {
    job: values.probe ? 'true\n' : readFileSync(job, 'utf8'),
    disks,
    files,
    seconds,
    memory: values.memory,
    onConsole: (text) => {
      if (values.console !== undefined) writeFileSync(values.console, text);
    },
  };
}

// `linux.uml` lies in /usr/bin, which is not on everybody's path.
process.env.PATH = [process.env.PATH, '/usr/bin', '/bin'].filter(Boolean).join(delimiter);
try {
  const { output } = await runGuest(parseCommand());
  process.stdout.write(output);
} catch (error) {
  if (error.output !== undefined) process.stdout.write(error.output);
  console.error(error.message);
  process.exitCode = error.status ?? STATUS.usage;
}
