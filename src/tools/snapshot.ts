/** Snapshots of an image by name: listed, made, applied, deleted. Owns the opening and closing around the one call.
 *  Invariant: an image that fails to change is as it was. */
import type { JobOptions } from '../base/job.ts';
import type { SnapshotInfo, SnapshotSelector } from '../core/format.ts';
import { Image, type NewSnapshot } from '../image/image.ts';
import { type OpenImageOptions, openImage } from '../image/open.ts';

export interface SnapshotOptions
  extends Omit<OpenImageOptions, 'readOnly' | 'forCheck' | 'metadataOnly' | 'unsafe' | 'snapshot' | 'name' | 'rules'> {
  readonly onProgress?: JobOptions['onProgress'] | undefined;
}

/** The snapshots of an image, oldest first.
 *  @throws {@link BlockError} as `openImage`. */
export function listSnapshots(source: string | Image, options: SnapshotOptions): Promise<readonly SnapshotInfo[]> {
  return withImage(source, options, true, (image) => Promise.resolve(image.snapshots));
}

/** Freezes the present content of an image under a name.
 *  @throws {@link BlockError} as `openImage` and `Image.createSnapshot`. */
export function createSnapshot(
  source: string | Image,
  snapshot: NewSnapshot,
  options: SnapshotOptions,
): Promise<SnapshotInfo> {
  return withImage(source, options, false, (image, job) => image.createSnapshot(snapshot, job));
}

/** Makes an image what it was when the snapshot was made, its size included.
 *  @throws {@link BlockError} as `openImage` and `Image.applySnapshot`. */
export function applySnapshot(
  source: string | Image,
  which: SnapshotSelector,
  options: SnapshotOptions,
): Promise<void> {
  return withImage(source, options, false, (image, job) => image.applySnapshot(which, job));
}

/** Deletes a snapshot; what it alone held is free again.
 *  @throws {@link BlockError} as `openImage` and `Image.deleteSnapshot`. */
export function deleteSnapshot(
  source: string | Image,
  which: SnapshotSelector,
  options: SnapshotOptions,
): Promise<void> {
  return withImage(source, options, false, (image, job) => image.deleteSnapshot(which, job));
}

async function withImage<T>(
  source: string | Image,
  options: SnapshotOptions,
  readOnly: boolean,
  act: (image: Image, job: JobOptions) => Promise<T>,
): Promise<T> {
  const { onProgress, ...open } = options;
  const { signal } = options;
  const job = { ...(signal === undefined ? {} : { signal }), ...(onProgress === undefined ? {} : { onProgress }) };
  if (source instanceof Image) return await act(source, job);
  const image = await openImage(source, { ...open, readOnly });
  try {
    return await act(image, job);
  } finally {
    await image.close();
  }
}
