"""The `ratchet` command: one file per group of commands."""
