"""Chaos: faults against real processes, and an independent check that everything accepted is stored once.

    python -m tests.chaos --minutes 14 --events 200000 --faults 50

system.py     broker and its store, database, flag server, model server and all ten services, each a process of its own
processes.py  restarts a process as soon as it ends
upstream.py   a model server that answers at once (vLLM is not tested here)
load.py       clients that call the gateways and write to Kafka; they record the answers in ledger.py
faults.py     a seeded schedule of kills, stops, frozen processes and full disks
checker.py    compares the ledger with the lake, without code of Ratchet
leaks.py      looks for the personal data of people.py wherever data are stored
run.py        runs all of it; report.py writes the outcome
"""
