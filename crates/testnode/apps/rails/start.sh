#!/bin/sh
# Nothing may be written but /tmp.
export RAILS_ENV=production RAILS_LOG_TO_STDOUT=1
mkdir -p /tmp/pids
exec /usr/bin/puma --config /srv/app/puma.rb --dir /srv/app
