/** luks, the driver: an encrypted disk behind a header with eight key slots. Spec: LUKS on-disk format 1.2.3, as QEMU's driver `luks` has it.
 *  Opening is: secret → header (in the file, or in one of its own) → key. Opening writes nothing. */
import { defineFormat, type OpenContext } from '../../core/format.ts';
import type { BlockNode } from '../../core/node.ts';
import { type LuksVolume, openLuks } from '../../crypto/luks.ts';
import { isLuks } from '../../crypto/luks-header.ts';
import { platformCrypto } from '../../crypto/runtime.ts';
import { luksAuditor } from './audit.ts';
import { createLuksImage } from './create.ts';
import { requireKeySecret, subjectOf } from './fault.ts';
import { measureLuks } from './measure.ts';
import { type DiskCiphers, LuksNode } from './node.ts';
import { amendOptions, createOptions, type LuksOpenOptions, openOptions } from './options.ts';

/** @throws {@link BlockError} ENCRYPTED `luks.key-secret`, `luks.password`; NOT_FOUND `secret.missing`; as `parseLuksHeader` and `LuksVolume.unlock`;
 *  as `openReference` for the header's own file. */
async function open(context: OpenContext, options: LuksOpenOptions): Promise<LuksNode> {
  const { name, metadataOnly } = context;
  const passphrase = metadataOnly === true ? undefined : context.secret(requireKeySecret(options.keySecret, name));
  try {
    const header = options.header === undefined ? undefined : await openHeader(context, options.header);
    const volume = await openLuks(header ?? context.file, platformCrypto, {
      subject: subjectOf(name),
      detached: header !== undefined,
    });
    const sectors = passphrase === undefined ? undefined : await unlock(volume, passphrase, context);
    return new LuksNode(context, volume, sectors, header, options.keySecret);
  } finally {
    passphrase?.fill(0);
  }
}

/** The caller named it, so no policy is asked. */
function openHeader(context: OpenContext, name: string): Promise<BlockNode> {
  return context.openReference({ role: 'header', name, readOnly: context.readOnly, chosen: true });
}

async function unlock(volume: LuksVolume, passphrase: Uint8Array, context: OpenContext): Promise<DiskCiphers> {
  const key = await volume.unlock(passphrase, { signal: context.signal });
  try {
    return { here: volume.sectorCipher(key), bulk: context.codecs.sectors(volume.header.algorithms, key.bytes) };
  } finally {
    key.wipe();
  }
}

export const luks = defineFormat({
  name: 'luks',
  summary: 'encrypted disks, LUKS version 1, with the header in the file or detached',
  extensions: ['luks'],
  // What was never written is what its decryption happens to give.
  capabilities: {
    create: true,
    write: true,
    backing: false,
    compress: false,
    check: false,
    zeroInit: false,
    fileUse: 'header',
    resize: true,
  },
  openOptions,
  fileChildren: { header: 'header' },
  createOptions,
  amendOptions,
  probe: ({ head }) => (isLuks(head) ? 100 : 0),
  open,
  create: createLuksImage,
  measure: measureLuks,
  auditor: luksAuditor,
  forward: { kind: 'data-follows' },
});
