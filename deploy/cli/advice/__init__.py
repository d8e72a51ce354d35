"""`ratchet advise`: fine-tune or prompt?

facts.py      what is known of a task, measured or answered. Pure
rules.py      the conditions, and what they amount to. Pure
evidence.py   measures facts in the lake, the data set and the last evaluation
commands.py   the command: what cannot be measured is said by options
"""
