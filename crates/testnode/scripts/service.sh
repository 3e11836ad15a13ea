# Starts a program that outlives its starter, as a child of the node's PID 1: service.sh NAME PROGRAM [ARGUMENT...]
name=$1
shift
setsid "$@" </dev/null >>"/var/log/woodfrog/$name.log" 2>&1 &
echo $! >"/run/woodfrog-services/$name.pid"
