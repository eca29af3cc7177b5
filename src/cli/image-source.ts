/** What an image argument means: a file name, options (`--image-opts`) or `json:{…}`. All of them become a name that the library opens; what the
 *  options mean is found out there. Opens nothing.
 *  Invariant: messages name the argument as given. */
import { type GraphValue, graphName, isGraphName, NodeSpec } from '../image/graph.ts';
import { Failure } from './failure.ts';
import { type ListedOption, parseOptionList } from './option-list.ts';

export interface ImageSource {
  /** The argument, for messages. */
  readonly label: string;
  /** What to open: a file name, or `json:{…}`. */
  readonly name: string;
  /** The driver that was asked for apart from the name. */
  readonly format: string | undefined;
}

/** @param format `-f`.
 *  @throws {@link Failure} */
export function parseImageSource(
  argument: string,
  choice: { readonly imageOpts: boolean; readonly format: string | undefined },
): ImageSource {
  const { imageOpts, format } = choice;
  if (!imageOpts) return { label: argument, name: argument, format };
  if (format !== undefined) throw new Failure('--image-opts and --format are mutually exclusive');
  return sourceOfOptions(argument, optionsOfList(argument));
}

/** The source that options describe, by QEMU's names.
 *  @param label what messages call it */
export function sourceOfOptions(label: string, options: ReadonlyMap<string, GraphValue>): ImageSource {
  return { label, name: graphName(Object.fromEntries(options)), format: undefined };
}

/** The same source with other options. */
export function changedSource(source: ImageSource, options: readonly ListedOption[]): ImageSource {
  const { name: before, format } = source;
  const described = isGraphName(before) ? NodeSpec.parse(before) : NodeSpec.named(before);
  const spec = format === undefined ? described : described.with('driver', format);
  const changes = new Map<string, GraphValue>(options.map(({ name, value }) => [name, value]));
  return { ...source, format: undefined, name: spec.merged(NodeSpec.of(changes)).name };
}

function optionsOfList(argument: string): Map<string, string> {
  const options = new Map<string, string>();
  parseOptionList(argument).forEach(({ name, value }, i) => {
    const first = argument.split(',', 1)[0] as string;
    // A first word alone names a node of the graph.
    if (i === 0 && !first.includes('=')) options.set('file', first);
    else options.set(name, value);
  });
  return options;
}
