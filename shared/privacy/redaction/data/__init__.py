"""Data that detection and replacement look things up in: names, words, checksums, number formats."""
