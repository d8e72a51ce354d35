"""One report, three printers: a result becomes blocks once, and each printer shows them.

blocks.py        the blocks: texts, tables, plots, sections
written.py       how numbers and intervals are written
html.py          blocks as HTML: a page that stands alone, or a part of the console's
terminal.py      blocks in the terminal
dataset.py, learning.py, evaluation.py, rollout.py    a result as blocks
"""
