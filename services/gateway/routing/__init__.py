"""Decides which adapter answers (`arms.py`) by the flags (`flags.py`), and has its confidence calibration."""
