# Keeps etcd and an API server running until whoever started this is gone, then leaves nothing behind.
#   supervise.sh DIR ETCD ETCD_ARGUMENT... -- APISERVER APISERVER_ARGUMENT...
# Standard input is a pipe that its writer never writes to: it ends when the writer closes it, or dies, however it dies.
set -u
dir=$1
shift
etcd=()
while [ "$1" != -- ]; do
    etcd+=("$1")
    shift
done
shift
started=()
end() {
    trap - EXIT
    kill -KILL "${started[@]}" 2>/dev/null
    wait
    rm -rf "$dir"
}
trap end EXIT
trap exit HUP INT TERM
exec 3<&0
cat <&3 >/dev/null &
started+=($!)
"${etcd[@]}" >"$dir/etcd.log" 2>&1 3<&- &
started+=($!)
"$@" >"$dir/apiserver.log" 2>&1 3<&- &
started+=($!)
exec 3<&-
# The pipe's end, or one of the two died. Then the logs stay until their reader has gone.
wait -n
touch "$dir/died"
wait "${started[0]}"
