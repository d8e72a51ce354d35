"""Supervision: detached processes that are restarted, identified and stopped."""
