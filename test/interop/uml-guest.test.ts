/** A real User Mode Linux guest runs on cow files that we created: it finds the disk that we describe, and we find what it wrote. In the
 *  long run only; where the machine does not let UML run, the suite is skipped and says so. The guest is scripts/uml/guest.mjs. */
import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { createImage, openImage } from '../../src/node.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { scratch } from '../support/scratch.ts';
import { Ext2 } from './ext2.ts';
import { describeWithGuest, FlatDisk, makeBase, mustRun, runGuest, SECTOR, umlToolsWanted } from './uml-support.ts';

const MiB = 1 << 20;
/** Bytes of noise that jobs take their data from. */
const DATA = 512 << 10;
/** Of the disks that get a file system, its part; the rest takes bare sectors. */
const FILE_SYSTEM = 8 * MiB;
/** Layouts besides v3 that the kernel reads right, as long as the bitmap's last byte is full. */
const OLD_LAYOUTS = ['v1-le32', 'v2-uml-32', 'v3-broken'];

/** What a guest and we work on: a base, the cow file over it, and the flat disk that both must add up to. */
class Bench {
  readonly base: string;
  readonly cow: string;
  readonly flat: FlatDisk;
  readonly size: number;
  readonly data: Uint8Array;
  readonly random: () => number;
  readonly #path: (name: string) => string;

  constructor(path: (name: string) => string, name: string, size: number) {
    mkdirSync(path(name));
    this.#path = (file) => path(`${name}/${file}`);
    this.base = this.#path('base');
    this.cow = this.#path('cow');
    this.flat = new FlatDisk(this.#path('flat'), size);
    this.size = size;
    this.random = seededRandom(size);
    this.data = noise(this.random, DATA);
    writeFileSync(this.#path('data'), this.data);
    for (const file of [this.base, this.flat.path]) makeBase(file, size, size);
  }

  create(options: Readonly<Record<string, unknown>> = {}): Promise<void> {
    return createImage(this.cow, { format: 'cow', backing: { name: this.base, format: 'raw' }, options });
  }

  /** Boots the guest; /data is there. @param disk what UML is told; else the cow file alone, whose header names the base. */
  boot(job: readonly string[], disk = this.cow): string {
    writeFileSync(this.#path('job'), `${job.join('\n')}\n`);
    return runGuest(this.#path('job'), [disk], [['data', this.#path('data')]]);
  }

  /** Commands that write pieces of /data, and the same to the flat disk: sector by sector behind the page cache's back, or through it.
   *  @param from first byte that they may write */
  patterns(count: number, from = 0): string[] {
    const first = from / SECTOR;
    const last = this.size / SECTOR;
    return Array.from({ length: count }, (_, index) => {
      const length = Math.min(1 + below(this.random, 40), last - first);
      // both ends of the range among them
      const sector =
        index === 0 ? first : index === 1 ? last - length : first + below(this.random, last - first - length + 1);
      const skip = below(this.random, DATA / SECTOR - length);
      this.flat.write(sector * SECTOR, this.data.subarray(skip * SECTOR, (skip + length) * SECTOR));
      const how = index % 3 === 2 ? 'conv=notrunc,fsync' : 'conv=notrunc,fsync oflag=direct';
      return `dd if=/data of=/dev/ubda bs=512 skip=${skip} seek=${sector} count=${length} ${how} status=none`;
    });
  }

  /** Everything, as we read it. */
  async read(): Promise<Uint8Array> {
    const image = await openImage(this.cow, { format: 'cow', references: 'allow' });
    try {
      return await image.read(0, image.virtualSize);
    } finally {
      await image.close();
    }
  }

  async difference(): Promise<string | undefined> {
    const image = await openImage(this.cow, { format: 'cow', references: 'allow' });
    try {
      return await this.flat.differenceFromImage(image);
    } finally {
      await image.close();
    }
  }

  /** The same writes through us. */
  async churn(count: number): Promise<void> {
    const image = await openImage(this.cow, { format: 'cow', references: 'allow', readOnly: false });
    try {
      await this.flat.churn(image, this.random, count);
    } finally {
      await image.close();
    }
  }
}

/** The guest's own sum of its disk, sector by sector from the device. */
const DISK_SUM = ['echo 3 >/proc/sys/vm/drop_caches', 'dd if=/dev/ubda bs=512 iflag=direct status=none | sha256sum'];

function sumOf(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

describeWithGuest('a User Mode Linux guest', () => {
  const path = scratch();

  it('finds the base in a cow file that we created, and we find what it wrote', async () => {
    // the bitmap's last byte is not full
    const here = new Bench(path, 'sectors', 5 * MiB + 3 * SECTOR);
    await here.create();
    const base = sumOf(await here.read());
    expect(here.boot(DISK_SUM)).toContain(base);
    const said = here.boot([...here.patterns(30), ...DISK_SUM]);
    expect(await here.difference()).toBeUndefined();
    expect(said).toContain(sumOf(await here.read()));
  });

  it('sees what we write between its runs', async () => {
    const here = new Bench(path, 'turns', 3 * MiB + 5 * SECTOR);
    await here.create();
    for (let turn = 0; turn < 2; turn++) {
      await here.churn(20);
      const sum = sumOf(await here.read());
      const said = here.boot([...DISK_SUM, ...here.patterns(10)]);
      expect(said).toContain(sum);
      expect(await here.difference()).toBeUndefined();
    }
  });

  it('keeps files on one, which we read back, and runs programs from it', async () => {
    const here = new Bench(path, 'files', FILE_SYSTEM + 2 * MiB + 3 * SECTOR);
    await here.create();
    const said = here.boot([
      ...here.patterns(10, FILE_SYSTEM),
      `mke2fs -F -b 1024 /dev/ubda ${FILE_SYSTEM / 1024}`,
      'mount -t ext2 /dev/ubda /mnt',
      'mkdir -p /mnt/bin /mnt/letters/old',
      'cp /bin/busybox /mnt/bin/busybox',
      'cp /data /mnt/noise',
      "echo 'Dear reader,' >/mnt/letters/hello.txt",
      'seq 1 20000 >/mnt/letters/old/numbers',
      'umount /mnt',
      ...DISK_SUM,
    ]);
    const disk = await here.read();
    expect(said).toContain(sumOf(disk));
    const numbers = Array.from({ length: 20_000 }, (_, index) => `${index + 1}\n`).join('');
    const files = new Ext2(disk);
    expect(files.clean).toBe(true);
    expect(files.read('noise')).toEqual(Buffer.from(here.data));
    expect(files.read('letters/hello.txt').toString()).toBe('Dear reader,\n');
    expect(files.read('letters/old/numbers').toString()).toBe(numbers);
    // of the bare sectors we know every byte
    here.flat.write(0, disk.subarray(0, FILE_SYSTEM));
    expect(await here.difference()).toBeUndefined();

    const again = here.boot([
      'mount -t ext2 /dev/ubda /mnt',
      'chroot /mnt /bin/busybox sha256sum /noise /letters/old/numbers',
      'rm /mnt/noise',
      "echo 'and again' >>/mnt/letters/hello.txt",
      'umount /mnt',
    ]);
    expect(again).toContain(`${sumOf(here.data)}  /noise`);
    expect(again).toContain(`${sumOf(Buffer.from(numbers))}  /letters/old/numbers`);
    const later = new Ext2(await here.read());
    expect(later.read('letters/hello.txt').toString()).toBe('Dear reader,\nand again\n');
    expect(() => later.read('noise')).toThrow('no such file');
  });

  it('takes the backing file from its command line as well, when it is the recorded one', async () => {
    const here = new Bench(path, 'named', MiB);
    await here.create();
    here.boot(here.patterns(8), `${here.cow},${here.base}`);
    expect(await here.difference()).toBeUndefined();
  });

  it.skipIf(!umlToolsWanted)('writes into what uml_mkcow made, and we read it', async () => {
    const here = new Bench(path, 'theirs', 2 * MiB + SECTOR);
    mustRun('uml_mkcow', [here.cow, here.base]);
    here.boot(here.patterns(20));
    expect(await here.difference()).toBeUndefined();
    const merged = path('theirs/merged');
    mustRun('uml_moo', [here.cow, merged]);
    expect(await here.flat.differenceFrom(merged)).toBeUndefined();
  });

  it.each(OLD_LAYOUTS)('reads and writes the layout %s', async (layout) => {
    const here = new Bench(path, layout, 2 * MiB);
    await here.create({ layout });
    await here.churn(10);
    const sum = sumOf(await here.read());
    const said = here.boot([...DISK_SUM, ...here.patterns(20)]);
    expect(said).toContain(sum);
    expect(await here.difference()).toBeUndefined();
    await here.churn(10);
    expect(here.boot(DISK_SUM)).toContain(sumOf(await here.read()));
  });
});
