"""Deduplication: which rows a table already has."""
