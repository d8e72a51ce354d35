"""The adversarial axis: inputs that mislead, made from held-out rows by rules and a seed, and what they do to each arm.

`texts.py` and `injections.py` have what the inputs are made with, `changes.py` changes a text, `cases.py` makes the
set, `misled.py` and `report.py` say what came of it, `gate.py` stops a candidate that is misled more than production.
"""
