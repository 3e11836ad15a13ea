# Two workers that share what the first process loaded.
environment "production"
bind "tcp://0.0.0.0:8080"
workers 2
threads 2, 5
preload_app!
# Now and then a worker that is told to end waits for its own server thread for ever; then the first process kills it.
worker_shutdown_timeout 5
