"""Running Ratchet: the `ratchet` command, the local stack, the demonstration loop, tasks."""
