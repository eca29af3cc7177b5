/** Command lines over blkdebug, blkverify and compress that the real qemu-io and ours must answer alike. Data only. */
import type { IoCase } from './io-cases.ts';

/** Rules files. */
export const BLKDEBUG_FILES: Readonly<Record<string, string>> = {
  'read.cfg': '# every read\n[inject-error]\nevent = "read_aio"\nerrno = "5"\n',
  'once.cfg': '[inject-error]\nevent = "write_aio"\nerrno = "28"\nonce = "on"\n',
  'states.cfg':
    '[set-state]\nevent = "read_aio"\nstate = "1"\nnew_state = "2"\n\n' +
    '[inject-error]\nevent = "read_aio"\nstate = "2"\nerrno = "13"\nonce = "on"\nimmediately = "on"\n',
  'alloc.cfg': '[inject-error]\nevent = "l2_alloc_write"\nerrno = "28"\nonce = "on"\n',
  'load.cfg': '[inject-error]\nevent = "l2_load"\nerrno = "5"\nonce = "on"\n',
  'cow.cfg': '[inject-error]\nevent = "cow_write"\nerrno = "28"\nonce = "on"\n',
  'packed.cfg': '[inject-error]\nevent = "write_compressed"\nerrno = "28"\nonce = "on"\n',
  'flush.cfg': '[inject-error]\nevent = "write_aio"\niotype = "flush"\nerrno = "5"\nonce = "on"\n',
  'empty.cfg': '',
  'bad-event.cfg': '[inject-error]\nevent = "l2_lod"\n',
  'bad-group.cfg': '[foo]\nevent = "l2_load"\n',
  'bad-line.cfg': ' \n',
  'bad-name.cfg': '[inject-error]\nevent = "l2_load"\nfoo = "1"\n',
  'bad-number.cfg': '[inject-error]\nevent = "l2_load"\nstate = "x"\n',
  'bad-bool.cfg': '[inject-error]\nevent = "l2_load"\nonce = "maybe"\n',
  'bad-id.cfg': '[inject-error "9!"]\nevent = "l2_load"\n',
  'no-event.cfg': '[inject-error]\nerrno = "5"\n',
  'no-group.cfg': 'event = "l2_load"\n',
};

const OVER = 'driver=qcow2,file.driver=blkdebug,file.image.filename=a.qcow2';

function withOptions(options: string, ...commands: string[]): IoCase {
  return { line: `--image-opts ${commands.map((command) => `-c '${command}'`).join(' ')} ${OVER},${options}` };
}

export const BLKDEBUG_CASES: readonly IoCase[] = [
  // rules files
  { line: "-c 'read 64k 4k' -c 'read 0 4k' blkdebug:read.cfg:a.qcow2" },
  { line: "-c 'write 64k 4k' -c 'write -P 9 64k 4k' -c 'read -P 9 64k 4k' blkdebug:once.cfg:a.qcow2" },
  { line: "-c 'read 64k 4k' -c 'read 64k 4k' -c 'read 64k 4k' blkdebug:states.cfg:a.qcow2" },
  { line: "-c 'read 64k 4k' -c 'read -P 0xaa 64k 4k' blkdebug:load.cfg:a.qcow2" },
  { line: "-c 'write -P 5 64k 4k' -c 'write -P 5 64k 4k' -c 'read -P 5 64k 4k' blkdebug:cow.cfg:b.qcow2" },
  {
    line: "-c 'write -c 512k 64k' -c 'write -c -P 5 512k 64k' -c 'read -P 5 512k 64k' blkdebug:packed.cfg:a.qcow2",
    differs: 'in QEMU a compressed write that failed leaves its cluster taken, and cannot be tried again',
  },
  { line: "-c 'read 64k 4k' blkdebug:empty.cfg:a.qcow2" },
  { line: "-c 'read 64k 4k' -c length blkdebug::a.qcow2" },
  { line: "-f qcow2 -c 'read -P 0xaa 64k 4k' blkdebug::a.qcow2" },
  { line: "-f raw -c 'read -P 0x41 64k 4k' -c 'write -P 1 1000 10' blkdebug::a.raw" },
  { line: "-f raw -c 'read 64k 4k' blkdebug:read.cfg:a.raw" },
  ...['event', 'group', 'line', 'name', 'number', 'bool', 'id'].map((what) => ({
    line: `-c 'read 0 4k' blkdebug:bad-${what}.cfg:a.qcow2`,
  })),
  { line: "-c 'read 0 4k' blkdebug:no-event.cfg:a.qcow2" },
  { line: "-c 'read 0 4k' blkdebug:no-group.cfg:a.qcow2" },
  { line: "-c 'read 0 4k' blkdebug:missing.cfg:a.qcow2" },
  { line: "-c 'read 0 4k' blkdebug:a.qcow2" },
  { line: "-c 'read 0 4k' blkdebug::missing.qcow2" },
  // rules as options
  withOptions('file.inject-error.0.event=read_aio', 'read 64k 4k', 'read 0 512'),
  withOptions('file.inject-error.0.event=read_aio,file.inject-error.0.once=on', 'read 64k 4k', 'read 64k 4k'),
  withOptions('file.inject-error.0.event=read_aio,file.inject-error.0.errno=28', 'read 64k 4k'),
  withOptions(
    'file.inject-error.0.event=write_aio,file.inject-error.0.sector=0',
    'write -P 1 64k 4k',
    'read -P 1 64k 4k',
  ),
  withOptions('file.inject-error.0.event=none,file.inject-error.0.iotype=write', 'read 64k 4k', 'write 64k 4k'),
  withOptions('file.inject-error.0.event=none,file.inject-error.0.iotype=write-zeroes', 'read 64k 4k', 'write 64k 4k'),
  withOptions('file.inject-error.0.event=none,file.inject-error.0.iotype=discard', 'read 64k 4k', 'write 64k 4k'),
  withOptions('file.inject-error.0.event=none', 'read 64k 4k'),
  withOptions('file.inject-error.0.event=pwritev,file.inject-error.0.once=on', 'write 64k 4k', 'write 64k 4k'),
  withOptions(
    'file.set-state.0.event=read_aio,file.set-state.0.state=1,file.set-state.0.new_state=2,' +
      'file.inject-error.0.event=read_aio,file.inject-error.0.state=2',
    'read 64k 4k',
    'read 64k 4k',
  ),
  withOptions('file.config=read.cfg', 'read 64k 4k'),
  withOptions('file.inject-error.0.event=l2_lod', 'read 64k 4k'),
  withOptions('file.inject-error.0.errno=4', 'read 64k 4k'),
  withOptions('file.inject-error.0.event=none,file.inject-error.0.iotype=x', 'read 64k 4k'),
  withOptions('file.inject-error.0.event=none,file.inject-error.0.state=x', 'read 64k 4k'),
  withOptions('file.inject-error.0.event=none,file.inject-error.0.once=x', 'read 64k 4k'),
  withOptions('file.set-state.0.event=foo', 'read 64k 4k'),
  withOptions('file.foo=1', 'read 64k 4k'),
  // limits
  ...['align=3', 'align=4294967296', 'align=512,file.max-transfer=700', 'align=512,file.opt-write-zero=700'].map(
    (limit) => withOptions(`file.${limit}`, 'read 0 512'),
  ),
  withOptions('file.align=512,file.opt-write-zero=1024,file.max-write-zero=1536', 'read 0 512'),
  withOptions('file.align=512,file.opt-discard=3', 'read 0 512'),
  withOptions('file.align=512,file.max-discard=7', 'read 0 512'),
  withOptions(
    'file.align=4k',
    'write -P 7 1000 3000',
    'read -P 7 1000 3000',
    'write -P 8 300k 70000',
    'read -P 8 300k 70000',
  ),
  withOptions('file.align=512,file.max-transfer=1k', 'write -P 7 1000 30000', 'read -P 7 1000 30000'),
  withOptions('file.align=512,file.opt-write-zero=4k,file.max-write-zero=8k', 'write -z 64k 64k', 'read -P 0 64k 64k'),
  withOptions('file.align=512,file.opt-discard=4k,file.max-discard=8k', 'discard 64k 64k', 'read -P 0 64k 64k'),
  // breakpoints
  {
    line: "-c 'break read_aio A' -c 'aio_read 64k 4k' -c 'wait_break A' -c 'resume A' -c aio_flush blkdebug::a.qcow2",
  },
  {
    line: "-c 'break write_aio A' -c 'aio_write -P 3 64k 4k' -c 'wait_break A' -c 'remove_break A' -c aio_flush -c 'read -P 3 64k 4k' blkdebug::a.qcow2",
    differs: 'QEMU lets the held request go on, and says that there was none',
  },
  {
    line: "-c 'break read_aio A' -c 'break read_aio B' -c 'aio_read 64k 4k' -c 'wait_break A' -c 'resume B' -c 'resume A' -c aio_flush blkdebug::a.qcow2",
  },
  { line: "-c 'break foo A' -c 'remove_break A' -c 'resume A' blkdebug::a.qcow2" },
  { line: "-c 'break read_aio A' -c 'remove_break A' -c 'read 64k 4k' blkdebug::a.qcow2" },
  {
    line: "-c 'break cow_write A' -c 'aio_write -P 3 64k 4k' -c 'wait_break A' -c 'read -P 0xaa 64k 4k' -c 'resume A' -c aio_flush -c 'read -P 3 64k 4k' blkdebug::b.qcow2",
  },
  // blkverify and compress
  {
    line: "--image-opts -c 'read 64k 4k' -c 'write -P 1 512 512' -c 'read -P 1 512 512' driver=blkverify,raw.driver=raw,raw.file.filename=a.raw,test.driver=raw,test.file.filename=a.raw",
  },
  { line: "-c 'read 0 4k' blkverify:a.raw" },
  {
    line: "--image-opts -c 'write -P 3 524388 64k' -c 'read -P 3 524388 64k' -c map driver=compress,file.driver=qcow2,file.file.filename=a.qcow2",
  },
  { line: "--image-opts -c 'write -P 3 100 64k' driver=compress,file.driver=raw,file.file.filename=a.raw" },
];
