/** A process that runs command lines of the compiled program one after the other, as it is told by its parent: starting Node for
 *  each of a thousand commands would take most of a test's time. The first argument is the program's entry. */
import { realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';

const compiled = join(dirname(realpathSync(process.argv[2])), '../dist/cli');
const { run } = await import(pathToFileURL(join(compiled, 'main.js')).href);
const { MemorySink } = await import(pathToFileURL(join(compiled, 'console.js')).href);

process.on('message', async ({ calledAs, args, directory, input }) => {
  process.chdir(directory);
  const out = new MemorySink();
  const err = new MemorySink();
  const status = await run({
    calledAs,
    args,
    out,
    err,
    env: process.env,
    signal: new AbortController().signal,
    input: input === undefined ? undefined : chunks(input),
  });
  process.send({ stdout: out.text, stderr: err.text, status });
});
process.send('ready');

/** Standard input, in two pieces. */
async function* chunks(text) {
  const bytes = Buffer.from(text);
  const half = Math.floor(bytes.length / 2);
  yield bytes.subarray(0, half);
  yield bytes.subarray(half);
}
