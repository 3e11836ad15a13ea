# Two workers that share what the first process loaded.
environment "production"
bind "tcp://0.0.0.0:8080"
workers 2
threads 2, 5
preload_app!
# Now and then a worker that is told to end waits for its own server thread for ever; then the first process kills it.
worker_shutdown_timeout 5
# It is the wall clock that tells how long a worker was silent, and that of a thawed one was for as long as the image is old.
worker_timeout 10 * 365 * 86_400
# Otherwise every second request collects garbage: its first one after a thaw would touch all memory.
on_worker_boot { Signal.trap(:URG) { Thread.new { GC.start } } }
