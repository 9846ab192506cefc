"""Real servers for tests: each starts in a directory, on loopback or a unix socket, and stops by itself."""
