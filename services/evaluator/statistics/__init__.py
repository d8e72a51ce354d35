"""The statistics of an evaluation: intervals, paired tests, classes, samples of traffic, confidence. Pure.

Rows of one group (near-copies of one text) say the same, so a group counts as one draw wherever an interval or a test
needs independent ones.
"""
