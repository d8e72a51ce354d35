"""Every block of code in the documentation, checked against what the code takes, and run.

blocks      the blocks of a page, and the reason why one is not run
commands    the arguments of `ratchet`, and where each command is called for real
checks      what is wrong with a block, found without running it
__main__    runs every block on the stack of a loop, and each command that no block has

A block whose line before is `<!-- not run: REASON -->` is checked and not run.
"""
