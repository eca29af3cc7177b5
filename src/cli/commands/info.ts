/** `info`: facts of an image, or of every layer of its chain. */
import type { ImageInfo } from '../../tools/info.ts';
import { imageInfo } from '../../tools/info.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import type { ImageSource } from '../image-source.ts';
import { openFailure, openOptionsOf } from '../open.ts';
import { humanInfo, type InfoView, jsonInfo } from '../render/human.ts';
import { prettyJson } from '../render/json.ts';
import type { Command } from '../verbs/index.ts';
import { oneImage, outputForm, scan, sourceOf } from './common.ts';

export const runInfo: Command = async (cli, args, spec) => {
  const given = await scan(cli, spec, args);
  const operand = oneImage(given);
  const form = outputForm(given);
  const views = await collect(cli, sourceOf(given, operand), given.has('backing-chain'));
  if (form === 'human') cli.out.write(views.map(humanInfo).join('\n'));
  else cli.out.write(prettyJson(given.has('backing-chain') ? views.map(jsonInfo) : jsonInfo(views[0] as InfoView)));
  return 0;
};

/** Each layer is opened by itself and nothing it names is opened with it: information can be had about a broken chain. */
async function collect(cli: Cli, top: ImageSource, chain: boolean): Promise<InfoView[]> {
  const drivers = await loadDrivers(false);
  const views: InfoView[] = [];
  const seen = new Set<string>();
  for (let source: ImageSource | undefined = top; source !== undefined; ) {
    if (seen.has(source.name)) throw new Failure(`Backing file '${source.name}' creates an infinite loop.`);
    seen.add(source.name);
    let info: ImageInfo;
    try {
      info = await imageInfo(source.name, openOptionsOf(cli, drivers, source, { references: 'layer-only' }));
    } catch (error) {
      throw openFailure(cli, source.label, error);
    }
    views.push(viewOf(info, source));
    source = chain ? layerBelow(info) : undefined;
  }
  return views;
}

function layerBelow(info: ImageInfo): ImageSource | undefined {
  if (info.backing === undefined) return undefined;
  const { resolved, format } = info.backing;
  if (resolved === undefined) throw new Failure("Could not determine the filename of the image's backing file");
  return { label: resolved, name: resolved, shown: undefined, format, options: new Map() };
}

function viewOf(info: ImageInfo, source: ImageSource): InfoView {
  return {
    filename: source.shown ?? info.name,
    format: info.format,
    virtualSize: info.virtualSize,
    actualSize: info.actualSize ?? info.children.find((child) => child.role === 'file')?.allocatedBytes,
    encrypted: info.encrypted,
    clusterSize: info.clusterSize,
    // QEMU says `false` for every format that has facts at all.
    dirty: info.dirty ?? false,
    backingFilename: info.backing?.name,
    fullBackingFilename: info.backing?.resolved,
    backingFormat: info.backing?.format,
    snapshots: info.snapshots,
    specific: info.specific,
  };
}
