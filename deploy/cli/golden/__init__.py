"""`ratchet golden`: a task's golden set, changed on purpose, and rows that it suggests.

commands       what a person types                                           commands.py
suggestions    rows that a person may add                                    suggestions.py
sources        rows made of a prediction or of a correction                  sources.py
corrections    what reviewers said, read from Kafka without erased people    corrections.py
training       which rows are, or nearly, in training data                   training.py
"""
