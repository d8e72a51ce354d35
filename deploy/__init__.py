"""Runs Ratchet: the `ratchet` command, the local stack, the demonstration loop and the tasks' files."""
