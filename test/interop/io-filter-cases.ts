/** Command lines about filters that the real qemu-io and ours must answer alike. Data only. */
import type { IoCase } from './io-cases.ts';

const GROUP = '--object throttle-group,id=g0,x-iops-total=1000000';
const RAW = 'file.driver=file,file.filename=a.raw';
const TOP = 'file.driver=qcow2,file.file.driver=file,file.file.filename=b.qcow2';
const LOG = `driver=blklogwrites,${RAW},log.driver=file,log.filename=nothing`;
const THREE = [0, 1, 2].map((i) => `children.${i}.driver=file,children.${i}.filename=${i === 2 ? 'empty' : 'a'}.raw`);

const LINES: readonly string[] = [
  `${GROUP} -c length -c 'read 0 64k' -c 'write -P 3 0 1k' -c map -c info --image-opts driver=throttle,throttle-group=g0,${TOP}`,
  `${GROUP} -c 'discard 64k 64k' -c 'write -z 0 64k' -c flush -c 'truncate 2M' -c length --image-opts driver=throttle,throttle-group=g0,${RAW}`,
  `-c 'read -P 0x41 64k 64k' -c 'write -P 5 0 64k' -c 'read -P 5 0 64k' -c 'write -z 64k 64k' -c flush -c map -c info --image-opts driver=quorum,vote-threshold=1,${THREE[0]}`,
  `-c length --image-opts driver=quorum,vote-threshold=2,${THREE.join(',')}`,
  `-c 'read -P 0xaa 64k 64k' -c map -c 'read -P 0 200k 1k' -c map -c info --image-opts driver=copy-on-read,${TOP}`,
  `-c 'aio_read 60k 10k' -c aio_flush -c 'write -P 3 66k 1k' -c 'read -P 3 66k 1k' --image-opts driver=copy-on-read,${TOP}`,
  `-C -c 'read -P 0xaa 64k 64k' -c 'read -P 0 200k 1k' -c map b.qcow2`,
  `-r -c 'read 0 512' --image-opts driver=copy-on-read,${TOP}`,
  `-c 'read 0 1k' --image-opts driver=copy-on-read,bottom=foo,${TOP}`,
  `-c 'read -P 0xaa 64k 1k' -c map --image-opts driver=copy-on-read,bottom=mid,${TOP},file.backing.driver=qcow2,file.backing.node-name=mid,file.backing.file.driver=file,file.backing.file.filename=a.qcow2`,
  `-c length -c 'write 1M 64k' -c 'truncate 3M' -c length -c map --image-opts driver=raw,file.driver=preallocate,file.file.driver=file,file.file.filename=a.raw`,
  `-c 'write -P 9 0 1M' -c map -c flush --image-opts driver=qcow2,file.driver=preallocate,file.prealloc-size=4M,file.file.driver=file,file.file.filename=a.qcow2`,
  `-t writeback -c 'write -P 4 1k 1k' -c 'write -P 5 100 100' -c 'write -z 64k 64k' -c flush -c 'write -P 6 0 512' -c 'read -P 4 1k 1k' --image-opts ${LOG}`,
  `-t writeback -c 'write -P 5 100 100' -c 'write -P 6 8k 4k' --image-opts ${LOG},log-sector-size=4096`,
  `-t writeback -c 'write -P 6 8k 4k' --image-opts ${LOG},log-append=on`,
  `-c 'write 0 512' --image-opts ${LOG},log-append=on,log-sector-size=512`,
  `-c 'write 0 512' --image-opts ${LOG},log-super-update-interval=0`,
  `-c 'read -P 0x41 0 64k' -c 'write -P 1 0 1k' -c length --image-opts driver=raw,offset=64k,size=64k,file.filename=a.raw`,
];

export const IO_FILTER_CASES: readonly IoCase[] = LINES.map((line) => ({ line }));
