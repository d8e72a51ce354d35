"""A model that compares two generated texts, blind and in both orders, and its certification by people's own choices.

`question.py` what it is asked · `client.py` asks, within a budget · `pairs.py` both orders · `certification.py` how far
it agrees with people · `step.py` the part of the job.
"""
