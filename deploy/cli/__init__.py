"""The `ratchet` command: one file per group of commands; app.py assembles them, errors.py prints their errors."""
