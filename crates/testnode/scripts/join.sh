# Runs a program in a node's control groups: join.sh PROCS_FILE... -- PROGRAM [ARGUMENT...]
# Descriptors above 2 are closed first, since one that leaks from a caller into a container breaks its dump.
for fd in /proc/$$/fd/*; do
    fd=${fd##*/}
    if ((fd > 2)); then exec {fd}>&-; fi
done
while [ "$1" != -- ]; do
    echo 0 >"$1" || exit 125
    shift
done
shift
exec "$@"
