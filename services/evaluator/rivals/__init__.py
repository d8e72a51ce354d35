"""Cheap rivals of the adapter: prompts with examples, and linear classifiers, on the same training and held-out rows.

step.py       what the evaluation job calls
run.py        makes the table of approaches
prompts.py    which examples a prompt has, and which rows are asked. Pure
classifiers.py  logistic regression on TF-IDF and on sentence embeddings (scikit-learn)
curve.py      accuracy over the number of training rows (scikit-learn)
table.py      rows, differences and costs. Pure
findings.py   what the table says, in sentences. Pure
"""
