"""The report of an evaluation: evaluation.json and its page.

arms.py       what one arm scored
parts.py      both arms on parts of the evaluation set
headline.py   the verdict in a sentence
publish.py    the folder in the artifact store, with the page of shared/report
"""
