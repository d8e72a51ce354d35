"""Which rows are alike, and what follows: what is excluded, held out, trained on.

similar      an index of all rows, which the others share              similar.py
frozen       no row is like a question of a frozen set                 frozen.py
duplicates   near-copies with different labels do not both stay        duplicates.py
turns        those of one conversation have the same place     conversations.py
placement    a row's place is decided once                             placement.py
place        what is decided about a row once                          place.py
stratified   which of the new rows are held out                        stratified.py
steps        the above, in their order                                 steps.py
"""
