# Builds the test API server and takes etcd, both from Debian's packages alone: leaves $BUILD/apiserver and $BUILD/etcd.
# Runs in a mount and PID namespace of its own. Takes about 12 minutes on two cores, and 5 GB of disk while it runs.
#
#   BUILD    an empty directory
#   SOURCES  the server's Go sources
#   MIRROR   where packages come from
set -euo pipefail
mount --make-rprivate /
root=$BUILD/sid
# Only sid has all of Kubernetes' libraries in one version.
debootstrap --variant=minbase --merged-usr sid "$root" "$MIRROR"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
# How the machine fetches packages: proxies, and what it thinks of dates.
apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets' >"$root/etc/apt/apt.conf.d/99machine" || true
in_root() { chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }
apt=(in_root apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=3)
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
"${apt[@]}" update
# systemd-standalone-* keep systemd itself out, which etcd-server would bring otherwise.
"${apt[@]}" install -y --no-install-recommends golang-go golang-k8s-apiextensions-apiserver-dev golang-k8s-apiserver-dev \
    systemd-standalone-sysusers systemd-standalone-tmpfiles etcd-server
mkdir -p "$root/root/gopath/src/testapiserver/openapi"
cp "$SOURCES"/*.go "$root/root/gopath/src/testapiserver/"
in_root /bin/bash -euc '
cd /root
export GO111MODULE=off GOCACHE=/root/gocache GOFLAGS= GOPATH=/root/gopath:/usr/share/gocode
GOPATH=/usr/share/gocode go build -trimpath -o openapi-gen k8s.io/kube-openapi/cmd/openapi-gen
echo "// generated" >header.txt
./openapi-gen --go-header-file header.txt --output-dir gopath/src/testapiserver/openapi --output-pkg testapiserver/openapi \
    --output-file zz_generated.openapi.go --output-model-name-file zz_generated.model_name.go --report-filename violations.txt \
    k8s.io/apimachinery/pkg/{apis/meta/v1,runtime,version,api/resource,util/intstr} \
    k8s.io/api/{core,apps,coordination,node,events,rbac,admissionregistration,authentication,authorization,autoscaling,batch,policy}/v1
version=v1.$(dpkg-query --show --showformat="\${Version}" golang-k8s-api-dev | sed "s/^0\.//; s/-.*//")
flags="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitTreeState=clean"
go build -trimpath -ldflags "$flags" -o apiserver testapiserver'
cp "$root/root/apiserver" "$root/usr/bin/etcd" "$BUILD/"
umount "$root/etc/resolv.conf" "$root/dev" "$root/proc"
rm -rf "$root"
