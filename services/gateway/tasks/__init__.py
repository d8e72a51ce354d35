"""Tasks: those that are served, and their snapshot on disk."""
