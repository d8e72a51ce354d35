"""What is measured of rows before anyone trains on them, and what is done about it. Pure.

    agreement     of people who answered the same question                agreement.py
    reliability   how often each reviewer is right                        reliability.py
    poisoning     voters who move a class too far                         poisoning.py
    label noise   labels that do not fit their texts                      label_noise.py
    distribution  labels of training against audited production           distribution.py
    balance       caps and weights, so that nothing floods the rest       balance.py

`Measures` has what they found, for the gates and the report (`inspection`).
"""
