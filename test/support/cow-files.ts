/** A file system in memory whose files have times of change, and cow among the formats: what tests that open cow images by name need. */
import type { FileStatus, ProtocolDriver } from '../../src/core/protocol.ts';
import { cow } from '../../src/formats/cow/driver.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { type CreateImageOptions, createImage } from '../../src/image/create.ts';
import type { Image } from '../../src/image/image.ts';
import { type OpenImageOptions, openImage } from '../../src/image/open.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';

export const FORMATS = [cow, qcow2, raw] as const;

/** Where names without a directory are. */
const DIRECTORY = '/images/';

export class CowFiles extends MemoryFiles {
  /** Seconds since 1970; a file that is not here has none. */
  readonly times = new Map<string, number>();
  readonly drivers: { readonly formats: typeof FORMATS; readonly protocols: readonly ProtocolDriver[] };

  constructor() {
    super();
    const { protocol } = this;
    const status = async (name: string): Promise<FileStatus | undefined> => {
      const found = await protocol.status?.(name);
      return found === undefined ? undefined : { ...found, modifiedSeconds: this.times.get(name) };
    };
    const absolute = async (name: string): Promise<string> => (name.startsWith('/') ? name : DIRECTORY + name);
    this.drivers = { formats: FORMATS, protocols: [{ ...protocol, status, absolute }] };
  }

  /** Puts a file there. Its pages are sectors, so that holes show. */
  put(name: string, bytes: Uint8Array, modifiedSeconds?: number): void {
    this.add(name, MemoryStore.from(bytes, { name, pageSize: 512 }));
    if (modifiedSeconds !== undefined) this.times.set(name, modifiedSeconds);
  }

  image(name: string, options: Partial<OpenImageOptions> = {}): Promise<Image> {
    return openImage(name, { ...this.drivers, ...options });
  }

  create(name: string, options: Partial<CreateImageOptions> = {}): Promise<void> {
    return createImage(name, { ...this.drivers, format: 'cow', ...options });
  }
}
