/** `info`: facts of an image, or of every layer of its chain. */

import type { ImageDrivers } from '../../image/open.ts';
import { decideReference, type ReferencePolicy } from '../../image/references.ts';
import type { ImageInfo } from '../../tools/info.ts';
import { imageInfo } from '../../tools/info.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import type { ImageSource } from '../image-source.ts';
import { type OpenChoices, openFailure, openOptionsOf, warnProbed } from '../open.ts';
import { humanInfo, type InfoView, jsonInfo } from '../render/human.ts';
import { prettyJson } from '../render/json.ts';
import type { Command } from '../verbs/index.ts';
import { oneImage, openChoices, outputForm, scan, sourceOf } from './common.ts';

export const runInfo: Command = async (cli, args, spec) => {
  const given = await scan(cli, spec, args);
  const operand = oneImage(given);
  const form = outputForm(given);
  const drivers = await loadDrivers(cli.personality, false, given.objects);
  const source = sourceOf(given, operand);
  const views = await collect(cli, drivers, source, openChoices(given), given.has('backing-chain'));
  if (form === 'human') cli.out.write(views.map(humanInfo).join('\n'));
  else cli.out.write(prettyJson(given.has('backing-chain') ? views.map(jsonInfo) : jsonInfo(views[0] as InfoView)));
  return 0;
};

/** Each layer is opened by itself and nothing it names is opened with it: information can be had about a broken chain. What it names may
 *  be looked at, as far as `--references` allows. */
async function collect(
  cli: Cli,
  drivers: ImageDrivers,
  top: ImageSource,
  choices: OpenChoices,
  chain: boolean,
): Promise<InfoView[]> {
  const { references = 'allow', quiet, forceShare } = choices;
  const views: InfoView[] = [];
  const seen = new Set<string>();
  // What is said about opening is about the top.
  let opening: OpenChoices = { ...choices, references: 'layer-only', lookAt: references };
  for (let source: ImageSource | undefined = top; source !== undefined; ) {
    if (seen.has(source.name)) throw new Failure(`Backing file '${source.name}' creates an infinite loop.`);
    seen.add(source.name);
    let info: ImageInfo;
    try {
      info = await imageInfo(source.name, openOptionsOf(cli, drivers, source, opening));
    } catch (error) {
      throw openFailure(cli, source.label, error);
    }
    if (info.probedRaw) warnProbed(cli, source.name, info.format, opening);
    views.push({ ...viewOf(info), locks: cli.personality.qemu ? undefined : info.locks });
    source = chain ? layerBelow(info, references) : undefined;
    opening = {
      references: 'layer-only',
      lookAt: references,
      ...(quiet === undefined ? {} : { quiet }),
      ...(forceShare === undefined ? {} : { forceShare }),
    };
  }
  return views;
}

function layerBelow(info: ImageInfo, policy: ReferencePolicy): ImageSource | undefined {
  if (info.backing === undefined) return undefined;
  const { name, resolved, opensAs } = info.backing;
  if (resolved === undefined) throw new Failure("Could not determine the filename of the image's backing file");
  decideReference(policy, { role: 'backing', name, format: opensAs, readOnly: true, resolved, from: info.name });
  return { label: resolved, name: resolved, format: opensAs };
}

/** Drivers that QEMU knows no such facts of. */
const WITHOUT_FACTS: readonly string[] = ['null-co', 'null-aio', 'quorum'];

function viewOf(info: ImageInfo): InfoView {
  return {
    filename: info.name,
    format: info.format,
    virtualSize: info.virtualSize,
    actualSize: info.actualSize ?? info.children.find((child) => child.role === 'file')?.allocatedBytes,
    encrypted: info.encrypted,
    clusterSize: info.clusterSize,
    // QEMU says `false` for every format that has facts at all.
    dirty: WITHOUT_FACTS.includes(info.format) ? undefined : (info.dirty ?? false),
    backingFilename: info.backing?.name,
    fullBackingFilename: info.backing?.resolved,
    backingFormat: info.backing?.format,
    snapshots: info.snapshots,
    specific: info.specific,
  };
}
