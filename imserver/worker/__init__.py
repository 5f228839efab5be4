"""im-worker: holds the clients' connections, pushes to them and sees to it that they acknowledge."""
