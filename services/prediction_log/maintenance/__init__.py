"""Maintenance: compaction, checkpoints, vacuum, retention."""
