"""What the daemon has to do with its host: directories, sockets, logs, control groups, the service manager."""
