"""The rules that turn corrections into a data set. Pure: no clock, no database, no network.

    personal     what came past redaction is replaced                     personal_data.py
    votes        one answer a prediction, or why there is none            votes.py, carry_over.py
    validation   what can never be trained on                             chat_format.py, length.py
    conflicts    equal questions that people answered differently         conflicts.py
    places       which rows are held out, decided once by conversation    places.py
    augmentation which rows count twice, if the task asks for it          augmentation.py
    authors      whose feedback is in a line, for erasure                 authors.py

A step takes rows and returns those that go on, and those that it leaves out with a fate and a reason: every row ends in
exactly one place.
"""
