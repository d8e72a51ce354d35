"""The independent checks of a run, with libraries alone: no code of Ratchet decides here what is right.

lake.py         reads the tables
rows.py         makes a call and its answer again from a row of the lake
differences.py  compares them with what was sent
predictions.py  compares the table of predictions with the ledger
checker.py      compares all tables of the lake with the ledger
leaks.py        looks for the personal data of load/people.py wherever data are stored
scenario.py     a ledger and a lake that agree, and planted.py: faults that tests plant in them
"""
