/** `io`, and the program qemu-io: options, the image, and the shell over them. Owns the order of the checks, which is qemu-io's. */
import { type Given, type Mistake, usage } from '../args.ts';
import { type Cli, Interruption, isTerminal } from '../console.ts';
import { Failure } from '../failure.ts';
import { parseImageSource } from '../image-source.ts';
import { DEFAULTS } from '../io/control.ts';
import { aioArgument, cacheArgument, discardArgument, Opener, type OpenRequest } from '../io/opening.ts';
import { Session } from '../io/session.ts';
import { runCommands, runInput } from '../io/shell.ts';
import type { VerbSpec } from '../verbs/common.ts';
import type { Command } from '../verbs/index.ts';
import { Finished, openChoices, type Scanned, scan } from './common.ts';

export const runIo: Command = async (cli, args, spec) => {
  const asked: { -readonly [K in keyof typeof DEFAULTS]: (typeof DEFAULTS)[K] } = { ...DEFAULTS };
  const given = await scanned(cli, args, spec, ({ spec: { key }, value = '' }) => {
    if (key === 'read-only') asked.readOnly = true;
    else if (key === 'snapshot') asked.overlay = true;
    else if (key === 'nocache') asked.cache = 'none';
    else if (key === 'copy-on-read') asked.copyOnRead = true;
    else if (key === 'native-aio') asked.aio = 'native';
    else if (key === 'aio') asked.aio = aioArgument(value);
    else if (key === 'cache') asked.cache = cacheArgument(value);
    else if (key === 'discard') asked.discard = discardArgument(value);
    else if (key === 'force-share') asked.forceShare = true;
  });
  const commands = given.all('cmd');
  const input = commands.length > 0 ? undefined : await inputOf(cli);
  const opener = new Opener(cli, given.objects, openChoices(given));
  const session = new Session(cli, opener, given.has('image-opts'), input?.aside);
  const [operand] = given.operands;
  try {
    if (operand !== undefined) session.adopt(await opener.open(requestOf(given, operand, asked, opener)));
    if (input === undefined) await runCommands(session, commands);
    else await input.run(session);
  } finally {
    await session.close();
  }
  if (cli.signal.aborted) return cli.signal.reason instanceof Interruption ? cli.signal.reason.status : 1;
  return session.failed ? 1 : 0;
};

/** The options. As qemu-io, mistakes are told in the words of the C library, with the help text.
 *  @throws {@link Finished} for help; {@link Failure} */
async function scanned(
  cli: Cli,
  args: readonly string[],
  spec: VerbSpec,
  onOption: (given: Given) => void,
): Promise<Scanned> {
  const { qemu } = cli.personality;
  try {
    const given = await scan(cli, spec, args, {
      onOption: (option) => {
        if (option.spec.key === 'version') throw new Wanted('version');
        onOption(option);
      },
      help: () => helpText(cli, spec),
      ...(qemu ? { mistake: getoptMistake } : {}),
    });
    if (given.operands.length <= 1) return given;
    if (!qemu) throw usage('Expecting one image file name');
    throw new Misused([]);
  } catch (error) {
    if (error instanceof Wanted) throw new Finished((await import('../help.ts')).versionText(cli.personality));
    if (error instanceof Misused) cli.out.write(await helpText(cli, spec));
    throw error;
  }
}

class Wanted extends Error {}

/** A command line that makes no sense: the help text belongs to the message. */
class Misused extends Failure {}

function getoptMistake({ kind, name, among = [] }: Mistake): Failure {
  switch (kind) {
    case 'short':
      return new Misused(`invalid option -- '${name}'`);
    case 'short-value':
      return new Misused(`option requires an argument -- '${name}'`);
    case 'long':
      return new Misused(`unrecognized option '--${name}'`);
    case 'long-value':
      return new Misused(`option '--${name}' requires an argument`);
    case 'surplus':
      return new Misused(`option '--${name}' doesn't allow an argument`);
    case 'ambiguous':
      return new Misused(
        `option '--${name}' is ambiguous; possibilities:${among.map((long) => ` '--${long}'`).join('')}`,
      );
  }
}

async function helpText(cli: Cli, spec: VerbSpec): Promise<string> {
  const { verbHelp, ioHelp } = await import('../help.ts');
  return cli.personality.qemu ? ioHelp(spec, cli.personality) : verbHelp(spec, cli.personality);
}

function requestOf(given: Scanned, operand: string, asked: typeof DEFAULTS, opener: Opener): OpenRequest {
  const imageOpts = given.has('image-opts');
  const format = given.value('format');
  if (imageOpts && format !== undefined) throw new Failure('--image-opts and -f are mutually exclusive');
  const label = imageOpts ? undefined : operand;
  try {
    return { ...asked, source: parseImageSource(operand, { imageOpts, format }), label };
  } catch (error) {
    throw opener.failure(label, error);
  }
}

interface Input {
  readonly aside?: ConstructorParameters<typeof Session>[3];
  run(session: Session): Promise<void>;
}

/** Where commands come from when the command line has none. */
async function inputOf(cli: Cli): Promise<Input> {
  const prompt = `${cli.personality.program}> `;
  const { input } = cli;
  if (input !== undefined) return { run: (session) => runInput(session, input, prompt) };
  const { standardInput, Terminal } = await import('../io/terminal.ts');
  if (!isTerminal(0) || !cli.out.isTerminal) {
    return { run: (session) => runInput(session, standardInput(cli.signal), prompt) };
  }
  const terminal = new Terminal(prompt);
  return { aside: terminal.aside, run: (session) => terminal.run(session) };
}
