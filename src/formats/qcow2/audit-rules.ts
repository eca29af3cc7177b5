/** What audits of qcow2 images look for, as data. */
import { auditRule } from '../../core/audit-rules.ts';

const CHECK = 'run `cowdisk check`, and do not write to the image before it is repaired';
const CONVERT = 'convert the image (`cowdisk convert`): what nobody refers to is left behind';

export const QCOW2 = {
  dirty: auditRule(
    'qcow2.dirty',
    'low',
    'The dirty bit is set: the image was not closed, and whoever opens it for writing repairs it first.',
    'run `cowdisk check -r all` where you trust the image',
  ),
  corrupt: auditRule('qcow2.corrupt', 'medium', 'The corrupt bit is set: some program has found damage.', CHECK),
  extension: auditRule(
    'qcow2.unknown-extension',
    'low',
    'The header has an extension that is not known here. It is kept when the image is changed, and its content is whatever its maker likes.',
    CONVERT,
  ),
  tail: auditRule(
    'qcow2.header-tail',
    'low',
    'The header is longer than the fields that are known, and what follows them is not zero.',
    CONVERT,
  ),
  hiddenName: auditRule(
    'qcow2.hidden-name',
    'low',
    'A name in the header goes on behind a zero byte: some programs show or use more of it than others.',
    'record the name anew (`cowdisk rebase -u`)',
  ),
  legacyEncryption: auditRule(
    'qcow2.legacy-encryption',
    'medium',
    'The disk is encrypted by the method of old images: the passphrase is the key, and the IV can be predicted.',
    'convert the image to one with `encrypt.format=luks`',
  ),
  tableSize: auditRule(
    'qcow2.table-size',
    'medium',
    'A table is far larger than the disk or the file needs, or there are 1,000 snapshots or more: readers that load it whole spend memory and time on nothing.',
    'open it under limits on memory; convert the image to get tables of a fit size',
  ),
  invalid: auditRule(
    'qcow2.invalid-entry',
    'medium',
    'An entry of a table has reserved bits set, or an offset that is no multiple of the cluster size: readers differ in what they make of it.',
    CHECK,
  ),
  outside: auditRule(
    'qcow2.out-of-file',
    'medium',
    'A table or a cluster lies behind the end of the file: a program that writes there makes the file grow to that size.',
    CHECK,
  ),
  loop: auditRule(
    'qcow2.loop',
    'high',
    'A table refers to itself: a guest that reads it reads metadata, and one that writes rewrites the map of its own disk.',
    'do not use it',
  ),
  overlap: auditRule(
    'qcow2.overlap',
    'high',
    'Two structures of the image share a cluster: writing the one changes the other.',
    CHECK,
  ),
  dataOverMetadata: auditRule(
    'qcow2.data-over-metadata',
    'high',
    'Guest data is mapped onto a structure of the image: the guest reads it, and rewrites it by writing to its disk; so it can make the image name any file of the host.',
    'do not use it',
  ),
  sharedTable: auditRule(
    'qcow2.shared-table',
    'medium',
    'One L2 table stands for several parts of the disk: a few tables make a disk of any size that is full everywhere.',
    CHECK,
  ),
  sharedCluster: auditRule(
    'qcow2.shared-cluster',
    'medium',
    'One cluster of the file is in several places of one disk.',
    CHECK,
  ),
  unprotected: auditRule(
    'qcow2.unprotected-metadata',
    'high',
    'A structure of the image counts as free space: the next write puts guest data over it.',
    CHECK,
  ),
  expansion: auditRule(
    'qcow2.expansion',
    'medium',
    'The disk holds more than 1,000 times as much data as its file has bytes: reading it whole takes that much time, copying it that much space.',
    'convert it only with room for all of it, or not at all',
  ),
  snapshot: auditRule(
    'qcow2.snapshot',
    'info',
    'The image has a snapshot: everything that the disk held then is in the file, deleted since or not.',
    'delete it (`cowdisk snapshot -d`) and convert the image, if what it holds must not be given away',
  ),
  snapshotData: auditRule(
    'qcow2.snapshot-data',
    'info',
    'Clusters of the file belong to snapshots only: what the disk shows no more.',
    'delete the snapshots and convert the image, if that must not be given away',
  ),
  vmState: auditRule(
    'qcow2.vm-state',
    'info',
    'A snapshot holds the state of a machine: all of its memory, with the passwords and keys in it.',
    'delete the snapshot and convert the image, if that must not be given away',
  ),
  bitmap: auditRule(
    'qcow2.bitmap',
    'info',
    'The image has a dirty bitmap: it tells which parts of the disk were written since some moment.',
    'remove it (`cowdisk bitmap --remove`), if that must not be known',
  ),
  leaked: auditRule(
    'qcow2.leaked-content',
    'low',
    'Clusters count as used, nothing refers to them, and they are not empty: neither the disk nor a snapshot shows them.',
    CONVERT,
  ),
  freed: auditRule(
    'qcow2.freed-content',
    'info',
    'Free clusters are not empty: what was deleted, or never belonged to the disk, is still in the file.',
    CONVERT,
  ),
} as const;
