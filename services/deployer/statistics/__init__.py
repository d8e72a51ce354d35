"""The statistics of promotion: pure functions of outcomes and counts, from numpy and scipy alone.

betting.py           the wealth of a candidate, and what stops it
bounds.py            how much better it is
non_inferiority.py   whether it is not worse by more than a margin, and the margin that is left
forecast.py          how many labels a proof takes
levels.py            the level of a candidate's test, drawn from what accrues of the year's
"""
