# Two workers that share what the first process loaded.
environment "production"
bind "tcp://0.0.0.0:8080"
workers 2
threads 2, 5
preload_app!
