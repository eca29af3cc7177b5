/** luks, both ways with the real qemu-img: what each writes the other reads, and the program called qemu-img says and returns the same, key slots
 *  and damaged headers included. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { convertImage, createImage, openImage } from '../../src/node.ts';
import { seeded } from '../crypto/support.ts';
import {
  hasQemuImg,
  type Program,
  Resident,
  requireBuild,
  type Said,
  splitCommand,
  started,
  Workshop,
} from './transcript-harness.ts';

// Without the instructions for SHA, nettle is slow enough for QEMU 7.2 to measure it: a clock tick without any CPU time is an error there.
process.env['NETTLE_FAT_OVERRIDE'] = 'vendor:intel';

const SECRETS = ['s=abc', 'n=new', 'w=wrong'].map((pair) => pair.split('=') as [string, string]);
const OBJECTS = SECRETS.map(([id, data]) => `--object secret,id=${id},data=${data}`).join(' ');
const OPTS = '--image-opts driver=luks,key-secret=s,file.driver=file,file.filename=a.luks';

/** Bytes changed in a header, and what they are. */
const DAMAGES: Readonly<Record<string, readonly [at: number, bytes: readonly number[] | string]>> = {
  'another version': [7, [2]],
  'another magic': [0, 'X'],
  'a cipher name without end': [8, 'a'.repeat(32)],
  'a cipher mode without end': [40, 'a'.repeat(32)],
  'a hash name without end': [72, 'a'.repeat(32)],
  'a payload inside the header': [104, [0, 0, 0, 7]],
  'a digest of no iterations': [164, [0, 0, 0, 0]],
  'too few stripes': [208 + 44, [0, 0, 0, 7]],
  'more stripes than there are numbers': [208 + 44, [0xff, 0xff, 0xff, 0xf0]],
  'a slot in no known state': [208, [0, 0, 0, 5]],
  'a slot of no iterations': [212, [0, 0, 0, 0]],
  'a slot inside the header': [208 + 40, [0, 0, 0, 1]],
  'a slot inside the payload': [208 + 40, [0, 1, 0x86, 0xa0]],
  'slots that overlap': [256 + 40, [0, 0, 0, 9]],
  'a mode without IV generator': [40, 'xts\0'],
  'an unknown mode': [40, 'foo-plain64\0'],
  'an unknown IV generator': [40, 'xts-foo\0'],
  'an unknown IV hash': [40, 'xts-plain64:foo\0'],
  'essiv without hash': [40, 'xts-essiv\0'],
  'essiv with a hash of odd length': [40, 'xts-essiv:sha1\0'],
  'an unknown hash': [72, 'foo\0'],
  'an unknown cipher': [8, 'foo\0'],
  'a cipher that is not here': [8, 'serpent\0'],
  'a cipher of other keys': [8, 'cast5\0'],
  'an odd length of keys': [108, [0, 0, 0, 20]],
  'no key': [108, [0, 0, 0, 0]],
  'a key of 4 GiB': [108, [0xff, 0xff, 0xff, 0xff]],
};

/** Sequences of commands that end the same. `%` stands for the secrets, `@` for the image with its key. */
const SEQUENCES: readonly string[] = [
  'info a.luks; info --output=json a.luks; info % @; info a.luks -f raw',
  'map a.luks; map % @; map --output=json % @; check a.luks; check % @; check --output=json % @',
  'compare a.luks a.luks; snapshot -l a.luks; snapshot -c x % @; commit % @; rebase -u -b x -F raw % @',
  'convert a.luks x; convert % --image-opts driver=luks,file.driver=file,file.filename=a.luks x; info x',
  'convert % --image-opts driver=luks,key-secret=zz,file.driver=file,file.filename=a.luks x',
  'convert % --image-opts driver=luks,key-secret=w,file.driver=file,file.filename=a.luks x',
  'convert % @ x; compare x a.raw; convert % -c -O luks -o key-secret=s a.raw y',
  'convert % -n -f raw a.raw --target-image-opts driver=luks,key-secret=s,file.driver=file,file.filename=a.luks; convert % @ x; compare x a.raw',
  'measure -O luks --size 10M; measure -O qcow2 % @; measure -O luks % -o key-secret=s,cipher-alg=foo --size 1M',
  'create -f luks x 1M; create -f luks -o key-secret=zz x 1M; create -f luks % -o key-secret=s x; create -f luks % -o key-secret=s -b a.raw x; create -f luks % -o key-secret=s,size=1M x 1M',
  'create -f luks % -o key-secret=s,cipher-alg=foo x 1M; create -f luks % -o key-secret=s,cipher-mode=foo x 1M; create -f luks % -o key-secret=s,ivgen-alg=foo x 1M; create -f luks % -o key-secret=s,hash-alg=foo x 1M',
  'create -f luks % -o key-secret=s,preallocation=foo x 1M; create -f luks % -o key-secret=s,ivgen-alg=essiv,ivgen-hash-alg=sha1 x 1M',
  'create -f luks % -o key-secret=s,iter-time=10,preallocation=full,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256 x 100k; info x; info --output=json x',
  'amend a.luks; amend -o state=active a.luks; amend % @ -o state=active; amend % @ -o new-secret=n; amend % @ -o state=active,new-secret=zz; amend % @ -o state=foo; amend % @ -o foo=bar; amend % @ -o size=2M',
  'amend % @ -o state=active,new-secret=n,old-secret=s; amend % @ -o state=active,new-secret=n,keyslot=8; amend % @ -o state=active,new-secret=n,keyslot=0; amend % @ -o help; amend -f luks -o help',
  'amend % @ -o state=inactive; amend % @ -o state=inactive,new-secret=n; amend % @ -o state=inactive,iter-time=10; amend % @ -o state=inactive,old-secret=w; amend % @ -o state=inactive,old-secret=zz; amend % @ -o state=inactive,keyslot=9; amend % @ -o state=inactive,keyslot=5; amend % --force @ -o state=inactive,keyslot=5; info a.luks',
  'amend % @ -o state=inactive,keyslot=0; amend % @ -o state=inactive,old-secret=s; amend % @ -o state=inactive,keyslot=0,old-secret=w; info a.luks; amend % --force @ -o state=inactive,keyslot=0; info a.luks; map % @',
];

/** QEMU takes seconds of its CPU for each key that it makes. */
const LONG_SEQUENCES: readonly string[] = [
  'measure -O luks % -o key-secret=s --size 10M; measure -O luks % -o key-secret=s,cipher-alg=aes-128 --size 1000',
  'create -f luks % -o key-secret=s,iter-time=10 x 1M; create -f luks % -o key-secret=s,iter-time=10,preallocation=metadata,cipher-alg=aes-128,hash-alg=sha1 x 1000; info x',
  'amend % @ -o state=active,new-secret=n,keyslot=3,iter-time=10; amend % @ -o state=active,new-secret=n,keyslot=3,iter-time=10; amend % --force @ -o state=active,new-secret=s,keyslot=3,iter-time=10; amend -p % @ -o state=active,new-secret=n,iter-time=10; info a.luks; amend % @ -o state=inactive,old-secret=s; amend % @ -o state=inactive,old-secret=n; info a.luks; amend -p % @ -o state=inactive,keyslot=0; info a.luks',
];

const LONG = process.env['COWDISK_LONG'] === '1';

function expand(sequence: string): string[] {
  return sequence.replaceAll('%', OBJECTS).replaceAll('@', OPTS).split('; ');
}

/** What differs from run to run. */
function masked(transcript: string): string {
  return transcript
    .replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, '<uuid>')
    .replace(/(iters"?: )\d+/g, '$1<iterations>');
}

/** Again when QEMU could not measure its CPU. */
const theirs: Program = async (args, directory) => {
  let said: Said;
  let attempt = 0;
  do said = await started('qemu-img')(args, directory);
  while (said.stderr.includes('Unable to get accurate CPU usage') && attempt++ < 20);
  return said;
};

const HAS_QEMU = hasQemuImg();

describe.skipIf(!HAS_QEMU && process.env['CI'] === undefined)('luks and the real qemu-img', () => {
  let workshop: Workshop;
  let ours: Resident;

  const mustSucceed = async (line: string, directory: string): Promise<string> => {
    const { stdout, stderr, status } = await theirs(splitCommand(line), directory);
    if (status !== 0) throw new Error(`qemu-img ${line}: ${stdout}${stderr}`);
    return stdout;
  };

  beforeAll(async () => {
    if (process.env['COWDISK_PROGRAM'] === undefined) requireBuild();
    workshop = new Workshop();
    ours = new Resident(workshop.ours);
    const { fixtures } = workshop;
    workshop.write('a.raw', seeded(1024 * 1024));
    await mustSucceed(`convert ${OBJECTS} -f raw -O luks -o key-secret=s,iter-time=10 a.raw a.luks`, fixtures);
    for (const [name, [at, patch]] of Object.entries(DAMAGES)) {
      const bytes = Uint8Array.from(workshop.read('a.luks'));
      bytes.set(typeof patch === 'string' ? Buffer.from(patch, 'latin1') : patch, at);
      workshop.write(`${name.replaceAll(' ', '-')}.luks`, bytes);
    }
  }, 60_000);

  afterAll(() => {
    ours?.stop();
    workshop?.dispose();
  });

  it.each([...SEQUENCES, ...(LONG ? LONG_SEQUENCES : [])])('say the same to %s', async (sequence) => {
    const commands = expand(sequence);
    const [a, b] = [
      await workshop.run(commands, theirs, ['a.luks', 'a.raw']),
      await workshop.run(commands, ours.run, ['a.luks', 'a.raw']),
    ];
    expect(masked(b.transcript)).toBe(masked(a.transcript));
  });

  it.each(Object.keys(DAMAGES))('say the same about a header with %s', async (name) => {
    const file = `${name.replaceAll(' ', '-')}.luks`;
    const known = name !== 'a cipher that is not here';
    const commands = [known ? `map ${OBJECTS} ${OPTS.replace('a.luks', file)}` : `info ${file}`];
    const [a, b] = [await workshop.run(commands, theirs, [file]), await workshop.run(commands, ours.run, [file])];
    expect(masked(b.transcript)).toBe(masked(a.transcript));
  });

  const NAMES = ['cipher-alg', 'cipher-mode', 'ivgen-alg', 'ivgen-hash-alg', 'hash-alg'];
  const ALGORITHMS = [
    ['aes-256', 'cbc', 'essiv', 'sha256', 'sha256'],
    ['aes-256', 'xts', 'plain64', 'sha256', 'sha256'],
    ['aes-128', 'xts', 'plain', 'sha256', 'sha1'],
    ['aes-192', 'xts', 'plain64', 'sha256', 'sha512'],
    ['aes-128', 'cbc', 'plain64', 'sha256', 'ripemd160'],
    ['aes-256', 'ctr', 'plain64', 'sha256', 'sha224'],
    ['aes-128', 'ecb', 'plain64', 'sha256', 'sha384'],
  ] as const;

  it.each(LONG ? ALGORITHMS : ALGORITHMS.slice(0, 1))(
    'have ours read what QEMU wrote with %s-%s-%s:%s and %s',
    async (...algorithms) => {
      const directory = workshop.directory(['a.raw']);
      const given = algorithms.map((name, i) => `${NAMES[i]}=${name}`).join(',');
      await mustSucceed(
        `convert ${OBJECTS} -f raw -O luks -o key-secret=s,iter-time=10,${given} a.raw theirs.luks`,
        directory,
      );
      const plain = readFileSync(join(directory, 'a.raw'));
      await using image = await openImage(join(directory, 'theirs.luks'), {
        secrets: { s: 'abc' },
        options: { keySecret: 's' },
      });
      expect(image.format).toBe('luks');
      expect(Buffer.compare(await image.read(0, plain.length), plain)).toBe(0);
    },
  );

  it.each(ALGORITHMS)('have QEMU read what we wrote with %s-%s-%s:%s and %s', async (...algorithms) => {
    const [cipherAlg, cipherMode, ivgenAlg, ivgenHashAlg, hashAlg] = algorithms;
    const directory = workshop.directory(['a.raw']);
    const path = (name: string): string => join(directory, name);
    const chosen = { keySecret: 's', iterTime: 0, cipherAlg, cipherMode, ivgenAlg, ivgenHashAlg, hashAlg };
    const target = { name: path('ours.luks'), format: 'luks', options: chosen };
    await convertImage(path('a.raw'), target, { secrets: { s: 'abc' }, probeBacking: true });
    await mustSucceed(`convert ${OBJECTS} ${OPTS.replace('a.luks', 'ours.luks')} -O raw back.raw`, directory);
    expect(Buffer.compare(readFileSync(path('back.raw')), readFileSync(path('a.raw')))).toBe(0);
    const told = JSON.parse(await mustSucceed('info --output=json ours.luks', directory))['format-specific'].data;
    // An IV hash is told where it means something.
    const names = NAMES.filter((name) => ivgenAlg === 'essiv' || name !== 'ivgen-hash-alg');
    expect(names.map((name) => told[name])).toEqual(names.map((name) => algorithms[NAMES.indexOf(name)]));
  });

  it('open with the keys that the other added, and not with those that it erased', async () => {
    const directory = workshop.directory(['a.luks', 'a.raw']);
    const image = join(directory, 'a.luks');
    const secrets = Object.fromEntries(SECRETS);
    const opens = async (keySecret: string): Promise<boolean> => {
      try {
        await (await openImage(image, { secrets, options: { keySecret } })).close();
        return true;
      } catch {
        return false;
      }
    };
    await mustSucceed(`amend ${OBJECTS} ${OPTS} -o state=active,new-secret=n,iter-time=10`, directory);
    expect([await opens('s'), await opens('n'), await opens('w')]).toEqual([true, true, false]);
    {
      await using disk = await openImage(image, { secrets, options: { keySecret: 'n' }, readOnly: false });
      await disk.amend({ state: 'active', newSecret: 'w', keyslot: 7, iterTime: 0 });
      await disk.amend({ state: 'inactive', oldSecret: 's' });
    }
    const with_ = (id: string): string => OPTS.replace('key-secret=s', `key-secret=${id}`);
    await mustSucceed(`convert ${OBJECTS} ${with_('w')} -O raw back.raw`, directory);
    expect(Buffer.compare(readFileSync(join(directory, 'back.raw')), readFileSync(join(directory, 'a.raw')))).toBe(0);
    expect((await theirs(splitCommand(`map ${OBJECTS} ${with_('s')}`), directory)).stderr).toContain(
      'Invalid password',
    );
    await mustSucceed(`amend ${OBJECTS} ${with_('w')} -o state=inactive,old-secret=n`, directory);
    expect([await opens('s'), await opens('n'), await opens('w')]).toEqual([false, false, true]);
  });

  it('agree about the disk of a detached header, which QEMU 7.2 does not know: its payload, put behind the header, is an image', async () => {
    const directory = workshop.directory(['a.raw']);
    const run = async (line: string): Promise<string> => {
      const { stdout, stderr, status } = await ours.run(splitCommand(line), directory);
      expect([line, stderr, status]).toEqual([line, '', 0]);
      return stdout;
    };
    const apart = 'driver=luks,key-secret=s,file.filename=disk,header.filename=h.luks';
    await run(`create -q -f luks ${OBJECTS} -o key-secret=s,iter-time=0,detached-header=on h.luks 0`);
    await run('create -q -f raw disk 1M');
    await run(`convert ${OBJECTS} -n -f raw a.raw --target-image-opts ${apart}`);
    const info = await run(`info ${OBJECTS} --image-opts ${apart}`);
    expect(info).toContain('    detached header: true\n');
    expect(info).toContain('virtual size: 1 MiB (1048576 bytes)\n');
    const header = readFileSync(join(directory, 'h.luks'));
    header.writeUInt32BE(header.length / 512, 104);
    writeFileSync(join(directory, 'a.luks'), Buffer.concat([header, readFileSync(join(directory, 'disk'))]));
    await mustSucceed(`convert ${OBJECTS} ${OPTS} -O raw back.raw`, directory);
    expect(Buffer.compare(readFileSync(join(directory, 'back.raw')), readFileSync(join(directory, 'a.raw')))).toBe(0);
  });

  it('write a disk in turns', async () => {
    const directory = workshop.directory(['a.raw']);
    const image = join(directory, 'a.luks');
    const secrets = { s: 'abc' };
    const size = 600_000;
    await createImage(image, { format: 'luks', size, secrets, options: { keySecret: 's', iterTime: 0 } });
    const model = new Uint8Array(600_064);
    {
      await using disk = await openImage(image, { secrets, options: { keySecret: 's' }, readOnly: false });
      await disk.write(0, model);
    }
    const raw = join(directory, 'now.raw');
    for (let round = 1; round <= 6; round++) {
      const at = round * 70_001;
      const bytes = seeded(50_000 + round, round);
      {
        await using disk = await openImage(image, { secrets, options: { keySecret: 's' }, readOnly: false });
        expect(Buffer.compare(await disk.read(0, model.length), model)).toBe(0);
        await disk.write(at, bytes);
        model.set(bytes, at);
      }
      const target = OPTS.replace('--image-opts', '--target-image-opts');
      await mustSucceed(`convert ${OBJECTS} ${OPTS} -O raw now.raw`, directory);
      const seen = readFileSync(raw);
      expect(Buffer.compare(seen.subarray(0, model.length), model)).toBe(0);
      model.copyWithin(512, 0, 4096 * round);
      writeFileSync(raw, model);
      await mustSucceed(`convert ${OBJECTS} -n -f raw now.raw ${target}`, directory);
    }
  });
});
