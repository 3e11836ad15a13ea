# Makes the Debian tree that nodes and images have in common: debian.sh SUITE DIR [MIRROR]
# Runs in a mount and PID namespace of its own.
set -euo pipefail
mount --make-rprivate /
suite=$1 dir=$2 mirror=${3-}
# Debian 12's debootstrap has no script of this suite's name yet; all suites of our time share sid's.
debootstrap --variant=minbase --merged-usr "$suite" "$dir" "$mirror" sid

# What belongs to the machine that built it, or that only a person would read.
rm -rf "$dir"/var/lib/apt/lists/* "$dir"/var/cache/apt/* "$dir"/var/log/* "$dir"/etc/hostname
rm -rf "$dir"/usr/share/{doc,man,info,locale,lintian,bug}/*
# Packages of Java link their manual pages there, and fail without the directory.
mkdir -p "$dir"/usr/share/man/man{1..8}
: >"$dir/etc/resolv.conf"
: >"$dir/etc/apt/sources.list"
rm -f "$dir"/etc/apt/sources.list.d/*
mkdir -p "$dir/var/cache/apt/archives/partial" "$dir/var/lib/apt/lists/partial"
cat >"$dir/etc/dpkg/dpkg.cfg.d/woodfrog-small" <<'CFG'
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/bug/*
CFG
