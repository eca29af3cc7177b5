/** The option tables: consistent in themselves, complete against QEMU's names, and kept to by the commands. */
import { describe, expect, it } from 'vitest';
import { MemorySink } from '../../src/cli/console.ts';
import { loadDrivers } from '../../src/cli/drivers.ts';
import { optionNames, verbManual } from '../../src/cli/help.ts';
import { run } from '../../src/cli/main.ts';
import { Objects } from '../../src/cli/objects.ts';
import { commandLineReference } from '../../src/cli/reference.ts';
import { FORMAT_NAMES, type VerbSpec } from '../../src/cli/verbs/common.ts';
import { allVerbSpecs, findVerb, optionsFor, VERB_NAMES, verbNames } from '../../src/cli/verbs/index.ts';

const specs = await allVerbSpecs();
const cowdisk = { program: 'cowdisk', qemu: false } as const;
const qemuImg = { program: 'qemu-img', qemu: true } as const;

/** Options of qemu-img 7.2 as its usage lists them, and the long names that newer QEMU has for them. */
const QEMU_OPTIONS: Readonly<Record<string, string>> = {
  amend: '-h --help -o --options --force -f --format -t --cache -p --progress -q --quiet --object --image-opts',
  bench:
    '-h --help -f --format -w --write -c --count -d --depth -s --buffer-size -S --step-size -o --offset --pattern --flush-interval --no-drain ' +
    '-t --cache -i --aio -n --native -q --quiet -U --force-share --object --image-opts',
  bitmap:
    '-h --help --add --remove --clear --enable --disable --merge -b --source-file -F --source-format -g --granularity -f --format ' +
    '--object --image-opts',
  check: '-h --help -f --format -r --repair --output -q --quiet -U --force-share -T --cache --object --image-opts',
  commit:
    '-h --help -f --format -t --cache -b --base -d --drop -r --rate-limit -p --progress -q --quiet --object --image-opts',
  compare:
    '-h --help -f --a-format -F --b-format -s --strict -T --cache -U --force-share -p --progress -q --quiet --object --image-opts',
  convert:
    '-h --help -f --source-format -O --target-format -o --target-format-options -B -b --backing -F --backing-format -c --compress ' +
    '-S --sparse-size -n --no-create --target-is-zero -m --parallel -W --oob-writes -r --rate-limit --salvage -C --copy-range-offloading ' +
    '-t --target-cache -T --source-cache -l --snapshot --bitmaps --skip-broken-bitmaps -p --progress -q --quiet -U --force-share ' +
    '--object --image-opts --target-image-opts',
  create:
    '-h --help -q --quiet -f --format -o --options -b --backing -F -B --backing-format -u --backing-unsafe --object',
  dd: '-h --help -f --format -O --target-format --output-format -U --force-share --object --image-opts',
  info: '-h --help -f --format --output --backing-chain -U --force-share --object --image-opts --limits -t --cache',
  map: '-h --help -f --format -s --start-offset -l --max-length --output -U --force-share --object --image-opts',
  measure:
    '-h --help -O --target-format -o --target-format-options --options --size -s -f --source-format --format -l --snapshot --output ' +
    '-U --force-share --object --image-opts --source-image-opts',
  rebase:
    '-h --help -f --format -t --cache -T --backing-cache -p --progress -u --backing-unsafe -b --backing -F -B --backing-format -c --compress ' +
    '-U --force-share -q --quiet --object --image-opts',
  resize: '-h --help --shrink --preallocation -f --format -q --quiet --object --image-opts',
  snapshot:
    '-h --help -l --list -a --apply -c --create -d --delete -q --quiet -f --format -U --force-share --object --image-opts',
};

function names(spec: VerbSpec): string[] {
  return optionsFor(spec, qemuImg).flatMap((option) =>
    optionNames({ ...option, ...(option.value === undefined ? {} : { value: 'X' }) })
      .replace(/( X|\[=X\])$/, '')
      .split(', '),
  );
}

function byText(a: string, b: string): number {
  return a < b ? -1 : 1;
}

async function cli(calledAs: string, ...args: string[]): Promise<{ status: number; out: string; err: string }> {
  const out = new MemorySink();
  const err = new MemorySink();
  const status = await run({ calledAs, args, out, err, env: {}, signal: new AbortController().signal });
  return { status, out: out.text, err: err.text };
}

describe('the tables of verbs', () => {
  it('say the same of a verb in the list and in its own table', () => {
    expect(specs.map((spec) => spec.name)).toEqual(VERB_NAMES);
    for (const spec of specs) {
      expect(findVerb(spec.name)?.summary).toBe(spec.summary);
      expect(findVerb(spec.name)?.only).toBe(spec.only);
    }
  });

  it("are QEMU's, when called qemu-img", async () => {
    expect(verbNames(qemuImg).toSorted(byText)).toEqual(Object.keys(QEMU_OPTIONS).toSorted(byText));
    expect(verbNames(cowdisk)).toEqual(VERB_NAMES);
    expect((await cli('qemu-img', 'detach', 'x')).err).toContain('Command not found: detach\n');
    expect((await cli('qemu-img', '--help')).out).not.toContain('detach');
    expect((await cli('cowdisk', '--help')).out).toContain('detach');
  });

  it.each(specs)('give no name of $name to two options of one program', (spec) => {
    for (const personality of [cowdisk, qemuImg]) {
      const all = optionsFor(spec, personality).flatMap((option) => [
        ...[option.short, ...(option.moreShort ?? [])].map((name) => name && `-${name}`),
        ...[option.long, ...(option.moreLong ?? [])].map((name) => name && `--${name}`),
      ]);
      const given = all.filter((name) => name !== undefined);
      expect(given.length).toBe(new Set(given).size);
    }
  });

  it.each(specs.filter(({ only }) => only === undefined))(
    'have every option that QEMU has for $name, old spelling and new, and no other when called qemu-img',
    (spec) => {
      expect(names(spec).toSorted(byText)).toEqual((QEMU_OPTIONS[spec.name] as string).split(' ').toSorted(byText));
    },
  );

  it.each(specs)('give a reason for every option of $name that does not act', (spec) => {
    for (const option of spec.options) {
      if (option.support === 'acts') continue;
      const reason = 'inert' in option.support ? option.support.inert : option.support.refused;
      expect(reason.length, option.key).toBeGreaterThan(20);
    }
  });

  it('name the formats that the program has', async () => {
    expect((await loadDrivers(cowdisk, false, new Objects())).formats.map((driver) => driver.name)).toEqual(
      FORMAT_NAMES,
    );
  });
});

describe('options that are refused', () => {
  const refused = specs.flatMap((spec) =>
    spec.options
      .filter((option) => option.support !== 'acts' && 'refused' in option.support)
      .map((option) => ({ verb: spec.name, option })),
  );

  // Those that need an image to say first what qemu-img says have their cases among the transcripts.
  it.each(refused.filter(({ option }) => !['bitmaps', 'skip-broken-bitmaps'].includes(option.key)))(
    'of $verb: --$option.key is refused with its reason',
    async ({ verb, option }) => {
      const name = option.long ?? option.moreLong?.[0];
      const args = option.value === undefined ? [`--${name}`] : [`--${name}`, 'x'];
      const { status, err } = await cli('cowdisk', verb, ...args, 'image');
      expect(status).toBe(1);
      expect(err).toContain((option.support as { refused: string }).refused);
    },
  );
});

describe('help', () => {
  it.each(specs)('has a page for $name with each of its options', (spec) => {
    const page = verbManual(spec, cowdisk);
    for (const option of optionsFor(spec, cowdisk)) expect(page).toContain(`    ${optionNames(option)}\n`);
    expect(page.split('\n').filter((line) => line.length > 80 && !line.includes('--references'))).toEqual([]);
  });

  it('is printed for -h behind any verb, whatever else is wrong', async () => {
    for (const name of VERB_NAMES) {
      const { status, out } = await cli('cowdisk', name, '-h', '--nonsense');
      expect(status).toBe(0);
      expect(out).toContain(`usage: cowdisk ${name}`);
    }
    expect((await cli('qemu-img', 'info', '-h')).out).toContain('Supported formats: qcow2 luks add-cow cow raw\n');
  });

  it('lists every verb', async () => {
    const { out } = await cli('cowdisk', '--help');
    for (const name of VERB_NAMES) expect(out).toContain(name);
  });
});

describe('the reference', () => {
  it('has a row for every option, with the reason of those that do not act', async () => {
    const text = await commandLineReference();
    for (const spec of specs) {
      expect(text).toContain(`## ${spec.name}\n`);
      for (const option of spec.options) {
        expect(text).toContain(optionNames(option).replaceAll('|', '\\|'));
        if (option.support !== 'acts' && 'inert' in option.support) expect(text).toContain(option.support.inert);
      }
    }
  });
});
