"""Deduplication: which rows a table holds already."""
