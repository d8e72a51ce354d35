"""Maintenance of the lake: retention, compaction, vacuum."""
