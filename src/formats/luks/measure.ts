/** How much space a luks image needs: header, key slots, and every byte of the disk. Pure. */
import type { Measurement } from '../../core/format.ts';
import { planLuks } from '../../crypto/create-luks.ts';
import { requireKeySecret, subjectOf } from './fault.ts';
import type { LuksCreateOptions } from './options.ts';

/** @throws {@link BlockError} ENCRYPTED `luks.key-secret`, as qemu-img asks for one here, too; as `planLuks`. */
export async function measureLuks(virtualSize: number, options: LuksCreateOptions): Promise<Measurement> {
  requireKeySecret(options.keySecret, 'new image');
  const { headerBytes } = planLuks(options, subjectOf('new image'));
  const bytes = headerBytes + (options.detachedHeader ? 0 : virtualSize);
  return { required: bytes, fullyAllocated: bytes };
}
