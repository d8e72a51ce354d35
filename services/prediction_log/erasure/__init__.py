"""Erasure: a person's rows are deleted and stay deleted."""
