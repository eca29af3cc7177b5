#!/usr/bin/env bash
# Makes the images in samples/ anew: a compressed qcow2 base that holds a small ext4 file system, and an overlay in which two of its
# files have changed. Needs mkfs.ext4, debugfs, qemu-img and qemu-io. The same input gives the same images.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export E2FSPROGS_FAKE_TIME=1700000000 SOURCE_DATE_EPOCH=1700000000 TZ=UTC LC_ALL=C
tree=$work/tree
mkdir -p "$tree/letters" "$tree/numbers"

cat >"$tree/hello.txt" <<'END'
Hello from a disk inside a file.

This file lies in an ext4 file system, the file system lies on a virtual disk, and the disk lies in a qcow2 image:
compressed, with holes where nothing was ever written.
END
cat >"$tree/letters/to-the-reader.txt" <<'END'
Dear reader,

a copy-on-write image remembers two things: what it holds itself, and whom to ask for the rest. Everything else in
this project follows from taking that sentence seriously.
END
seq 1 20000 >"$tree/numbers/counting.txt"
awk 'BEGIN { for (n = 2; n < 30000; n++) { p = 1; for (d = 2; d * d <= n; d++) if (n % d == 0) { p = 0; break } if (p) print n } }' \
  >"$tree/numbers/primes.txt"
# A hole in the middle of a file, as databases and virtual machines make them.
printf 'first page' >"$tree/sparse.bin"
truncate -s 2M "$tree/sparse.bin"
printf 'last page' >>"$tree/sparse.bin"

truncate -s 16M "$work/base.raw"
mkfs.ext4 -q -F -b 1024 -N 64 -m 0 -O ^has_journal,^resize_inode -L cowdisk-demo \
  -U 11111111-2222-4333-8444-555555555555 \
  -E root_owner=0:0,hash_seed=aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee,lazy_itable_init=1 \
  "$work/base.raw"
# Not `mkfs -d`: it would record when, and in which order, the files above were made.
debugfs -w -f - "$work/base.raw" >/dev/null 2>&1 <<END
mkdir letters
mkdir numbers
write $tree/hello.txt hello.txt
write $tree/sparse.bin sparse.bin
cd letters
write $tree/letters/to-the-reader.txt to-the-reader.txt
cd ../numbers
write $tree/numbers/counting.txt counting.txt
write $tree/numbers/primes.txt primes.txt
END

cp --sparse=always "$work/base.raw" "$work/changed.raw"
cat >"$work/hello.txt" <<'END'
Hello again, from the overlay.

The base still says what it said. Only the clusters that this change touched lie in the overlay; the rest is read from
the backing file.
END
cat >"$work/diary.txt" <<'END'
Day 1: an overlay was made. It was empty, and showed everything.
Day 2: one file was changed and this one was written. The base noticed nothing.
END
debugfs -w -f - "$work/changed.raw" >/dev/null 2>&1 <<END
rm hello.txt
write $work/hello.txt hello.txt
write $work/diary.txt diary.txt
END

mkdir -p samples
rm -f samples/base.qcow2 samples/overlay.qcow2
qemu-img convert -c -f raw -O qcow2 -o cluster_size=16k "$work/base.raw" samples/base.qcow2
(cd samples && qemu-img create -q -f qcow2 -o cluster_size=4k -b base.qcow2 -F qcow2 overlay.qcow2)
# The clusters that differ, one by one, as a guest would have written them.
node - "$work/base.raw" "$work/changed.raw" "$work" >"$work/commands" <<'END'
const { readFileSync, writeFileSync } = require('node:fs');
const [base, changed] = [readFileSync(process.argv[2]), readFileSync(process.argv[3])];
for (let at = 0; at < base.length; at += 4096) {
  const cluster = changed.subarray(at, at + 4096);
  if (base.compare(cluster, 0, cluster.length, at, at + 4096) === 0) continue;
  const file = `${process.argv[4]}/${at}.bin`;
  writeFileSync(file, cluster);
  console.log(`write -q -s ${file} ${at} ${cluster.length}`);
}
END
qemu-io -f qcow2 samples/overlay.qcow2 <"$work/commands" >/dev/null
qemu-img check -q samples/base.qcow2
qemu-img check -q samples/overlay.qcow2
qemu-img compare -q -f qcow2 -F raw samples/overlay.qcow2 "$work/changed.raw"
chmod 644 samples/*.qcow2
ls -l samples
