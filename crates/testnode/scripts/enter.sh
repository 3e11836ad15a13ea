# Becomes PID 1 of a node. Runs in fresh mount, PID, network, UTS, IPC and control group namespaces.
#
#   NAME      the node's name
#   LOWER     the layers of its tree, topmost first, separated by colons
#   DISK      its directory on a real file system: upper, work, root, containerd, log
#   CONTAINERD  disk, or memory: where containerd keeps images and containers
#   REGISTRY  directory of the registry's content, shared by all nodes
#   BINARIES  directory of the binaries under test, seen read-only at /opt/woodfrog
set -euo pipefail
mount --make-rprivate /
root=$DISK/root
# Control group mounts as the host has them, to be made again in the node's own control group namespace.
mapfile -t cgroups < <(awk '$3 ~ /^cgroup2?$/ { print $2, $3, $4 }' /proc/mounts)

mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$DISK/upper,workdir=$DISK/work,index=off,metacopy=off,redirect_dir=off" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"

mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
for device in null zero full random urandom tty kmsg fuse userfaultfd; do
    [ ! -e "/dev/$device" ] || cp -a "/dev/$device" "$root/dev/$device"
done
mkdir "$root"/dev/{pts,shm,mqueue,net}
[ ! -e /dev/net/tun ] || cp -a /dev/net/tun "$root/dev/net/tun"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o nosuid,nodev tmpfs "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for n in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${n%:*}" "$root/dev/${n#*:}"; done

case "${cgroups[0]-}" in
"/sys/fs/cgroup "*) ;;
*) mount -t tmpfs -o mode=755,nosuid,nodev,noexec tmpfs "$root/sys/fs/cgroup" ;;
esac
for line in "${cgroups[@]}"; do
    read -r at type options <<<"$line"
    # Only what names the hierarchy may be given to a mount in a control group namespace.
    wanted=
    for option in ${options//,/ }; do
        case $option in rw | ro | relatime | nosuid | nodev | noexec | nsdelegate | memory_* | favordynmods) ;; *) wanted=$wanted,$option ;; esac
    done
    mkdir -p "$root$at"
    mount -t "$type" ${wanted:+-o "${wanted#,}"} cgroup "$root$at"
done

mkdir -p "$root"/var/lib/{containerd,registry} "$root/var/log/woodfrog" "$root/opt/woodfrog" "$root/run/woodfrog-services"
# Either way not the overlay, which could not be the upper directory of containers' overlays.
if [ "$CONTAINERD" = disk ]; then
    mount --bind "$DISK/containerd" "$root/var/lib/containerd"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/var/lib/containerd"
fi
mount --bind "$REGISTRY" "$root/var/lib/registry"
mount --bind "$DISK/log" "$root/var/log/woodfrog"
mount --bind "$BINARIES" "$root/opt/woodfrog"
mount -o remount,bind,ro "$root/opt/woodfrog"

echo "$NAME" >/proc/sys/kernel/hostname
echo 1 >/proc/sys/net/ipv4/ip_forward
cd "$root"
# A plain chroot would do for containerd, but CRIU cannot make sense of mounts outside its root.
mkdir run/host
pivot_root . run/host
umount -l /run/host
rmdir /run/host
exec /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/bin/catatonit -P
