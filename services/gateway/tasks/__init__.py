"""The tasks that are served, and their snapshot on disk."""
