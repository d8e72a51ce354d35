"""Cheap rivals of the adapter, on the same held-out rows: the base model as it is, and a linear classifier.

run.py        what the evaluation job calls: measures the rivals and makes the table of approaches
classifier.py logistic regression on sentence embeddings (scikit-learn)
table.py      rows, differences and costs. Pure
findings.py   what the table says, in sentences. Pure
"""
