"""The independent checks of a run of rollouts: no code of the deployer decides here what is right.

history.py   what happened, as plain records
wealth.py    the formulas of promotion, each written down a second time
tickets.py   what the answers to a rollout's tickets were worth at a moment; the ledger against the events
canary.py    what a canary had served and failed when it rose, and what its guards had to say
moves.py     every move against the evidence that there was
flags.py     every flag against the moves, and against what the engines served
checker.py   all of it
"""
