"""Processes: the supervisor of shippers and workers."""
