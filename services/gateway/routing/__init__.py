"""Routing: which adapter answers (arms and flags), and the calibration of its confidence."""
