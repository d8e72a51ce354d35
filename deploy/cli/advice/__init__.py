"""`ratchet advise`: fine-tune or prompt?

rules.py      the conditions, and what they amount to. Pure
log.py        what a sample of logged answers says. Pure
evidence.py   reads the lake, the data set and the last evaluation
commands.py   the command: what cannot be measured is said by options
"""
