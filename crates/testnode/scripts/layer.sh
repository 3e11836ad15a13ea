# Builds one layer over others, as the upper directory of an overlay. Runs in a mount and PID namespace of its own.
#
#   LOWER     the layers below, topmost first, separated by colons
#   BUILD     directory with fs (the result), work and root (the mount point)
#   APT       directory that keeps package lists and archives between builds
#   SUITE, MIRROR   where packages come from
#   PACKAGES  what to install; may be empty
#   FILES     directory to copy to /srv/app; may be empty. If it has a setup.sh, that is run in the layer and left out of it.
set -euo pipefail
mount --make-rprivate /
root=$BUILD/root
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$BUILD/fs,workdir=$BUILD/work,index=off,metacopy=off,redirect_dir=off" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"

export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root
if [ -n "$PACKAGES" ]; then
    mkdir -p "$APT/lists/partial" "$APT/archives/partial"
    mount --bind "$APT/lists" "$root/var/lib/apt/lists"
    mount --bind "$APT/archives" "$root/var/cache/apt/archives"
    mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
    echo "deb $MIRROR $SUITE main" >"$root/tmp/sources.list"
    # Packages of services start them, and fail where no init system runs; this tells them not to.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    # How the machine fetches packages: proxies, and what it thinks of dates.
    apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets' >"$root/tmp/acquire.conf"
    apt=(chroot "$root" env APT_CONFIG=/tmp/acquire.conf apt-get -q -o Dir::Etc::SourceList=/tmp/sources.list -o APT::Sandbox::User=root -o Binary::apt-get::APT::Keep-Downloaded-Packages=true -o Acquire::Retries=3)
    "${apt[@]}" update
    # shellcheck disable=SC2086 # one word a package
    "${apt[@]}" install -y --no-install-recommends $PACKAGES
    rm -f "$root/usr/sbin/policy-rc.d" "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/var/cache/apt/*.bin
    rm -rf "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old
fi
if [ -n "$FILES" ]; then
    mkdir -p "$root/srv"
    cp -a --no-preserve=ownership "$FILES" "$root/srv/app"
    if [ -e "$root/srv/app/setup.sh" ]; then
        chroot "$root" sh -eu -c 'cd /srv/app && . ./setup.sh'
        rm "$root/srv/app/setup.sh"
    fi
fi
