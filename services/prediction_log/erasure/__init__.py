"""Erasure: rows of a person are deleted, and stay away."""
