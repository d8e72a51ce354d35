"""How good an answer is beside the right one: a score in [0, 1], right or wrong, and field by field. Pure.

`grade.py` chooses by the task's kind: labels and generated text by `text.py`, JSON by `json_values.py`.
"""
