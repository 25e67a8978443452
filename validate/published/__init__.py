"""Published measurements as typed rows, one file a source, and what the simulator says of the same quantities."""
