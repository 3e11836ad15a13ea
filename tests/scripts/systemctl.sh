#!/bin/bash
# systemd, as far as the installer needs it: units are files in /etc/systemd/system, and each runs the command of its ExecStart.
# As with systemd, what it starts is in the host's namespaces, whatever root it was called in.
set -euo pipefail
state=/run/systemctl-stand-in
mkdir -p "$state"

pid() {
    local pid
    pid=$(cat "$state/$1.pid" 2>/dev/null || echo 0)
    if [ "$pid" != 0 ] && ! kill -0 "$pid" 2>/dev/null; then pid=0; fi
    echo "$pid"
}

stop() {
    local pid
    pid=$(pid "$1")
    if [ "$pid" != 0 ]; then kill "$pid"; fi
    while [ "$(pid "$1")" != 0 ]; do sleep 0.05; done
    rm -f "$state/$1.pid"
}

start() {
    local command
    command=$(sed -n 's/^ExecStart=//p' "/etc/systemd/system/$1")
    # shellcheck disable=SC2086 # its words are arguments
    nsenter --target 1 --mount --root --wd=/ setsid $command </dev/null >>"/var/log/woodfrog/$1.log" 2>&1 &
    echo $! >"$state/$1.pid"
}

verb=$1
unit=${*: -1}
case $verb in
daemon-reload) ;;
enable) touch "$state/$unit.enabled" ;;
disable) rm -f "$state/$unit.enabled" ;;
stop) stop "$unit" ;;
restart) stop "$unit" && start "$unit" ;;
show)
    pid=$(pid "$unit")
    if [ "$pid" = 0 ]; then echo ActiveState=inactive SubState=dead; else echo ActiveState=active SubState=running; fi | tr ' ' '\n'
    echo "MainPID=$pid"
    if [ -e "$state/$unit.enabled" ]; then echo UnitFileState=enabled; else echo UnitFileState=; fi
    ;;
*)
    echo "systemctl $*: not known here" >&2
    exit 1
    ;;
esac
