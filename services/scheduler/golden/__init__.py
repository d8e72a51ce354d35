"""A task's golden file: how it is read and written (file.py), and changed on purpose, with a history (changes.py)."""
