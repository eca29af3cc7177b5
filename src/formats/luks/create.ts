/** Creating luks images: room for header and disk first, then the key slot, then the header.
 *  Invariant: the header is written last (`createLuks` does it), so an interrupted creation leaves no image that looks whole. */
import { throwIfAborted } from '../../base/job.ts';
import type { CreateContext } from '../../core/format.ts';
import { createLuks, planLuks } from '../../crypto/create-luks.ts';
import { cryptoWith } from '../../crypto/runtime.ts';
import { luksFault, requireKeySecret, subjectOf } from './fault.ts';
import type { LuksCreateOptions } from './options.ts';

/** With a detached header the new file holds the header alone, whatever the size: the disk is any other file.
 *  @throws {@link BlockError} ENCRYPTED `luks.key-secret`; NOT_FOUND `secret.missing`; UNSUPPORTED `luks.forward`, and as `planLuks`; TOO_LARGE
 *  `luks.device-small`, `luks.size`; OPTION `luks.iter-time`. */
export async function createLuksImage(
  context: CreateContext,
  virtualSize: number,
  options: LuksCreateOptions,
): Promise<void> {
  const { name, signal } = context;
  const passphrase = context.secret(requireKeySecret(options.keySecret, name));
  try {
    const { headerBytes } = planLuks(options, subjectOf(name));
    await makeRoom(context, headerBytes, options.detachedHeader ? 0 : virtualSize, options);
    throwIfAborted(signal);
    const { key } = await createLuks(context.file, cryptoWith(context.chance), {
      ...options,
      subject: subjectOf(name),
      detached: options.detachedHeader,
      passphrase,
    });
    key.wipe();
  } finally {
    passphrase.fill(0);
  }
}

async function makeRoom(
  { file, name, signal }: CreateContext,
  headerBytes: number,
  diskBytes: number,
  { preallocation }: LuksCreateOptions,
): Promise<void> {
  if (file.supports.access === 'forward') {
    throw luksFault('UNSUPPORTED', name, 'forward', 'cannot be written to a pipe: the header is written last');
  }
  if (diskBytes > Number.MAX_SAFE_INTEGER - headerBytes) {
    throw luksFault('TOO_LARGE', name, 'size', `size ${diskBytes} is too large for a payload at ${headerBytes}`, {
      size: diskBytes,
      payloadOffset: headerBytes,
    });
  }
  const fileSize = headerBytes + diskBytes;
  if (file.supports.truncate) {
    // There is no metadata beside the header: as QEMU has it, `metadata` means `off` here.
    const mode = preallocation === 'metadata' ? 'off' : preallocation;
    await file.truncate(fileSize, { preallocation: mode, ...(signal === undefined ? {} : { signal }) });
    return;
  }
  if (file.size < fileSize) {
    throw luksFault(
      'TOO_LARGE',
      name,
      'device-small',
      `the device has ${file.size} bytes, header and disk need ${fileSize}`,
      { size: fileSize, deviceSize: file.size },
    );
  }
  // What was there before must not be taken for key material.
  await file.writeZeroes(0, headerBytes);
}
