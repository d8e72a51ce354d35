"""Replacement: made-up data of the same shape, always the same for the same original."""
