#!/bin/busybox sh
# The first process of the guest: runs /job, says how it ended, halts. Lines that begin with "job: " are the job's own.
/bin/busybox mkdir -p /proc /sys /mnt /tmp
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ LC_ALL=C TZ=UTC
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# From here on the kernel is silent unless it dies, and no line of the job is cut in two.
dmesg -n 1
# The kernel answers reads that are split over cow and backing file wrongly when it reads ahead.
for queue in /sys/block/ubd*/queue; do
  [ -d "$queue" ] && echo 0 >"$queue/read_ahead_kb"
done
echo 'guest is up'
set -o pipefail
sh -e -o pipefail /job 2>&1 </dev/null | sed 's/^/job: /'
echo "job ended: $?"
sync
halt -f
