#!/bin/sh
# enter.sh ROOT PATHS UID COMMAND: runs COMMAND in ROOT. It is pid 1 of namespaces of its own, which end with it.
# PATHS names files and folders of the host that ROOT shows too.
set -eu
root=$1 paths=$2 uid=$3 command=$4

mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs -o mode=1777 tmpfs dev/shm
while read -r path; do
  if [ -d "$path" ]; then mkdir -p ".$path"; else mkdir -p ".$(dirname "$path")" && touch ".$path"; fi
  mount --bind -o ro "$path" ".$path"
done <"$paths"

# A process in a plain chroot may make no user namespace, and bubblewrap needs one.
mkdir -p host
pivot_root . host
cd /
# umount is one of the tools that ROOT may lack.
python3 -c 'import ctypes; raise SystemExit(ctypes.CDLL(None).umount2(b"/host", 2))'
rmdir host

# No exec: pid 1 must be a shell, which collects whatever process loses its parent.
setpriv --reuid "$uid" --regid "$uid" --clear-groups sh -c "cd ~/roost && $command" && status=0 || status=$?
exit "$status"
