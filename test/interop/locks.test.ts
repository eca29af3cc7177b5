/** Locks between processes: our programs and the real ones keep each other away from an image in use, in either role, with the same words. */
import { type ChildProcess, spawn as start } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  hasQemuImg,
  type Program,
  Resident,
  requireBuild,
  spawn,
  splitCommand,
  started,
  Workshop,
} from './transcript-harness.ts';

const MINUTES = 60_000;
const PROMPT = 'qemu-io> ';
const SECRET = '--object secret,id=s,data=x';
const LUKS = 'driver=luks,file.filename=l.luks,key-secret=s';

const FIXTURES = [
  'base.qcow2',
  'other.qcow2',
  'over.qcow2',
  'second.qcow2',
  'third.qcow2',
  'plain.raw',
  'onraw.qcow2',
  'split.qcow2',
  'split.raw',
  'small.raw',
  'l.luks',
];

/** What is done to an image that somebody else has open. */
const ANY_IMAGE = (image: string): string[] => [
  `info ${image}`,
  `info -U ${image}`,
  `check ${image}`,
  `check -U ${image}`,
  `check -r all ${image}`,
  `check -U -r all ${image}`,
  `map ${image}`,
  `map -U ${image}`,
  `compare ${image} other.qcow2`,
  `compare -U ${image} other.qcow2`,
  `convert -O raw ${image} out.raw`,
  `convert -U -O raw ${image} out.raw`,
  `convert -O qcow2 small.raw ${image}`,
  `convert -n -O qcow2 small.raw ${image}`,
  `create -f qcow2 ${image} 1M`,
  `create -f raw ${image} 1M`,
  `measure -O qcow2 ${image}`,
  `measure -U -O qcow2 ${image}`,
  `dd -f raw -O raw bs=1M if=small.raw of=${image}`,
  `dd -O raw bs=1M if=${image} of=out.raw`,
  `dd -U -O raw bs=1M if=${image} of=out.raw`,
  `bench -c 1 ${image}`,
  `bench -U -c 1 ${image}`,
  `bench -w -c 1 ${image}`,
  `create -f qcow2 -b ${image} -F qcow2 new.qcow2`,
];
const ANY_QCOW2 = (image: string): string[] => [
  ...ANY_IMAGE(image),
  `info --backing-chain ${image}`,
  `resize ${image} +1M`,
  `snapshot -l ${image}`,
  `snapshot -U -l ${image}`,
  `snapshot -c s ${image}`,
  `amend -o lazy_refcounts=on ${image}`,
  `bitmap --add ${image} b`,
];
const CHAIN = [
  'info over.qcow2',
  'info --backing-chain over.qcow2',
  'info -U --backing-chain over.qcow2',
  'map over.qcow2',
  'map -U over.qcow2',
  // (qemu-img check opens the backing files, which it does not need; ours leaves them alone, in use or not)
  'snapshot -c s over.qcow2',
  'commit over.qcow2',
  'commit -d over.qcow2',
  'rebase -u -b other.qcow2 -F qcow2 second.qcow2',
  'rebase -b base.qcow2 -F qcow2 second.qcow2',
  'rebase -b other.qcow2 -F qcow2 over.qcow2',
  'convert -O raw over.qcow2 out.raw',
];

/** Who has what open, and what others try meanwhile. */
const CASES: readonly { readonly held: string; readonly lines: readonly string[] }[] = [
  { held: 'base.qcow2', lines: [...ANY_QCOW2('base.qcow2'), ...CHAIN] },
  { held: '-r base.qcow2', lines: [...ANY_QCOW2('base.qcow2'), ...CHAIN] },
  {
    held: '-r -U over.qcow2',
    lines: ['commit -b base.qcow2 third.qcow2', 'rebase -u -b base.qcow2 -F qcow2 third.qcow2'],
  },
  { held: '-r -U base.qcow2', lines: ['info base.qcow2', 'check -r all base.qcow2', 'create -f qcow2 base.qcow2 1M'] },
  {
    held: 'over.qcow2',
    lines: [
      ...CHAIN,
      'check -r all base.qcow2',
      'resize base.qcow2 +1M',
      'create -f qcow2 base.qcow2 1M',
      'commit second.qcow2',
      'check base.qcow2',
      'map second.qcow2',
    ],
  },
  {
    held: '-f raw plain.raw',
    lines: [
      ...ANY_IMAGE('plain.raw').filter(
        (line) => !line.includes('-O qcow2 small.raw') && !line.startsWith('create -f qcow2 plain'),
      ),
      'resize -f raw plain.raw +1M',
      'commit onraw.qcow2',
      'map onraw.qcow2',
    ],
  },
  // qemu-img empties and removes the file before it finds out that it may not: there is no second line
  { held: '-f raw plain.raw', lines: ['create -f qcow2 plain.raw 1M'] },
  { held: '-f raw plain.raw', lines: ['convert -O qcow2 small.raw plain.raw'] },
  {
    held: '-r -f raw plain.raw',
    lines: [...ANY_IMAGE('plain.raw'), 'resize -f raw plain.raw +1M', 'commit onraw.qcow2', 'map onraw.qcow2'],
  },
  {
    held: 'other.qcow2',
    lines: ['rebase -b other.qcow2 -F qcow2 over.qcow2', 'rebase -U -b other.qcow2 -F qcow2 over.qcow2'],
  },
  { held: 'onraw.qcow2', lines: ['resize -f raw plain.raw +1M', 'info plain.raw', 'bench -w -c 1 -f raw plain.raw'] },
  {
    held: 'split.qcow2',
    lines: [
      'info split.qcow2',
      'check split.qcow2',
      'info split.raw',
      'map -f raw split.raw',
      'bench -w -c 1 -f raw split.raw',
      'convert -f raw -O raw split.raw out.raw',
      'resize -f raw split.raw +1M',
      'create -f raw split.raw 1M',
      'create -f qcow2 -o data_file=split.raw new.qcow2 1M',
    ],
  },
  {
    held: '-r split.qcow2',
    lines: [
      'map split.qcow2',
      'map -f raw split.raw',
      'bench -w -c 1 -f raw split.raw',
      'convert -f raw -O raw split.raw out.raw',
      'resize -f raw split.raw +1M',
      'create -f raw split.raw 1M',
      'convert -O raw split.qcow2 out.raw',
    ],
  },
  {
    held: `${SECRET} --image-opts ${LUKS}`,
    lines: [
      'info l.luks',
      `map ${SECRET} --image-opts ${LUKS}`,
      `amend ${SECRET} --object secret,id=n,data=y --image-opts ${LUKS} -o state=active,new-secret=n,iter-time=10`,
      `resize ${SECRET} --image-opts ${LUKS} +1M`,
      `convert ${SECRET} --image-opts ${LUKS} -O raw out.raw`,
      'create -f raw l.luks 1M',
    ],
  },
];

/** A program that has an image open until it is told to end. */
class Holder {
  readonly #child: ChildProcess;
  #said = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  static async start(program: string, line: string, directory: string): Promise<Holder> {
    // one stream for all that it says, or an error may come after the prompt that follows it
    const words = ['-c', 'exec "$0" "$@" 2>&1', program, ...splitCommand(line)];
    const holder = new Holder(start('sh', words, { cwd: directory, stdio: ['pipe', 'pipe', 'inherit'] }));
    await holder.#prompt();
    return holder;
  }

  /** Types a line, and waits for the answer. @returns it. */
  async type(line: string): Promise<string> {
    this.#said = '';
    const prompt = this.#prompt();
    this.#child.stdin?.write(`${line}\n`);
    await prompt;
    return this.#said.replaceAll(PROMPT, '');
  }

  #prompt(): Promise<void> {
    return new Promise((resolve, reject) => {
      const onData = (chunk: unknown): void => {
        this.#said += String(chunk);
        if (!this.#said.endsWith(PROMPT)) return;
        this.#child.off('close', onClose);
        this.#child.stdout?.off('data', onData);
        resolve();
      };
      const onClose = (): void => reject(new Error(`it ended: ${this.#said}`));
      this.#child.once('close', onClose);
      this.#child.stdout?.on('data', onData);
    });
  }

  async end(how: 'quit' | 'killed' = 'quit'): Promise<void> {
    const ended = once(this.#child, 'close');
    if (how === 'killed') this.#child.kill('SIGKILL');
    else this.#child.stdin?.end('quit\n');
    await ended;
  }
}

function requirePeer(): boolean {
  if (hasQemuImg()) return true;
  if (process.env['CI'] !== undefined) throw new Error('the real qemu-img is needed');
  return false;
}

describe.skipIf(!requirePeer())('an image that another process has open', () => {
  let workshop: Workshop;
  let resident: Resident;
  const real = started('qemu-img');

  beforeAll(async () => {
    requireBuild();
    workshop = new Workshop();
    workshop.prepare([
      'qemu-img create -f qcow2 base.qcow2 4M',
      'qemu-img create -f qcow2 other.qcow2 4M',
      'qemu-img create -f qcow2 -b base.qcow2 -F qcow2 over.qcow2',
      'qemu-img create -f qcow2 -b base.qcow2 -F qcow2 second.qcow2',
      'qemu-img create -f qcow2 -b over.qcow2 -F qcow2 third.qcow2',
      'qemu-img create -f raw plain.raw 4M',
      'qemu-img create -f raw small.raw 1M',
      'qemu-img create -f qcow2 -b plain.raw -F raw onraw.qcow2',
      'qemu-img create -f qcow2 -o data_file=split.raw split.qcow2 4M',
    ]);
    const luks = `create -f luks ${SECRET} -o key-secret=s,iter-time=10 l.luks 1M`;
    await spawn(workshop.ours, splitCommand(luks), workshop.fixtures);
    resident = new Resident(workshop.ours);
  }, MINUTES);

  afterAll(() => {
    resident.stop();
    workshop.dispose();
  });

  /** What a program says to each line while the image is held. */
  async function answers(
    program: Program,
    holder: string,
    held: string,
    lines: readonly string[],
  ): Promise<readonly string[]> {
    const directory = workshop.directory(FIXTURES);
    const other = await Holder.start(holder, held, directory);
    const said: string[] = [];
    try {
      for (const line of lines) {
        const { stderr, status } = await program(splitCommand(line), directory);
        said.push(`${line}\n${stderr}[${status}]`);
      }
    } finally {
      await other.end();
    }
    return said;
  }

  for (const { held, lines } of CASES) {
    const what = held.replace(SECRET, '…');
    it(`by qemu-io ${what} says qemu-img's words to ${lines.length === 1 ? lines[0] : `${lines.length} commands`}`, {
      timeout: MINUTES,
    }, async () => {
      const theirs = await answers(real, 'qemu-io', held, lines);
      expect(await answers(resident.run, 'qemu-io', held, lines)).toEqual(theirs);
      // and a real qemu-img cannot tell our qemu-io from its own
      expect(await answers(real, workshop.oursIo, held, lines)).toEqual(theirs);
    });
  }

  it('is free again when the process is killed', { timeout: MINUTES }, async () => {
    for (const holder of ['qemu-io', workshop.oursIo]) {
      const directory = workshop.directory(FIXTURES);
      const line = ['check', '-r', 'all', 'base.qcow2'];
      const other = await Holder.start(holder, 'over.qcow2', directory);
      for (const program of [real, resident.run]) {
        expect((await program(line, directory)).stderr).toContain('Failed to get "write" lock');
      }
      await other.end('killed');
      for (const program of [real, resident.run]) expect((await program(line, directory)).status).toBe(0);
    }
  });

  it('follows a reopening, both ways', { timeout: MINUTES }, async () => {
    for (const holder of ['qemu-io', workshop.oursIo]) {
      const directory = workshop.directory(FIXTURES);
      const other = await Holder.start(holder, 'base.qcow2', directory);
      const tries = async (): Promise<string[]> => {
        const said: string[] = [];
        for (const program of [real, resident.run]) {
          for (const line of ['map base.qcow2', 'check -r all base.qcow2']) {
            said.push((await program(splitCommand(line), directory)).stderr.split('\n', 1)[0] as string);
          }
        }
        return said;
      };
      const refused = "qemu-img: Could not open 'base.qcow2': Failed to get";
      const toReaders = [`${refused} shared "write" lock`, `${refused} "write" lock`];
      expect(await tries()).toEqual([...toReaders, ...toReaders]);
      await other.type('reopen -r');
      const toWriters = ['', `${refused} "write" lock`];
      expect(await tries()).toEqual([...toWriters, ...toWriters]);
      await other.type('reopen -w');
      expect(await tries()).toEqual([...toReaders, ...toReaders]);
      await other.end();
    }
  });

  it('keeps a reader from becoming a writer, who stays a reader', { timeout: MINUTES }, async () => {
    const heard: string[] = [];
    for (const holder of ['qemu-io', workshop.oursIo]) {
      for (const reader of ['qemu-io', workshop.oursIo]) {
        const directory = workshop.directory(FIXTURES);
        const [first, second] = await Promise.all([
          Holder.start(holder, '-r base.qcow2', directory),
          Holder.start(reader, '-r base.qcow2', directory),
        ]);
        heard.push(await first.type('reopen -w'));
        heard.push((await first.type('read 0 512')).split('\n', 1)[0] as string);
        await second.end();
        await first.type('reopen -w');
        heard.push((await first.type('write 0 512')).split('\n', 1)[0] as string);
        await first.end();
      }
    }
    const [refusal, read, written] = heard;
    expect(refusal).toContain('Failed to get "write" lock\nIs another process using the image [base.qcow2]?');
    expect([read, written]).toEqual(['read 512/512 bytes at offset 0', 'wrote 512/512 bytes at offset 0']);
    for (let i = 3; i < heard.length; i += 3) expect(heard.slice(i, i + 3)).toEqual([refusal, read, written]);
  });
});
