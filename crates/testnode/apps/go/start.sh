#!/bin/sh
# Compiles the Go program whose text is the argument, and runs it. Nothing may be written but /tmp.
set -e
export HOME=/tmp GOCACHE=/tmp/cache GOFLAGS=-buildvcs=false
# CRIU knows no MPTCP, with which Go listens.
export GODEBUG=multipathtcp=0
printf '%s\n' "$1" > /tmp/main.go
# Neither symbols for debuggers nor what was compiled on the way need be in an image.
go build -ldflags '-s -w' -o /tmp/program /tmp/main.go
rm -rf /tmp/cache /tmp/main.go
exec /tmp/program
