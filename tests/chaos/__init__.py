"""Chaos: faults against real processes, and an independent check that everything accepted is stored once.

    python -m tests.chaos --minutes 14 --events 200000 --faults 50

system.py     broker and its store, database, flag server, model server and all ten services, each a process of its own
processes.py  restarts a process as soon as it ends
tasks.py      the two tasks that the applications have
load/         clients that call the gateways and write to Kafka, and the model server that answers (vLLM is not tested
              here); they record what was sent and answered in ledger.py
faults.py     a seeded schedule of kills, stops, frozen processes and full disks
checks/       compares the ledger with the lake, whole calls, without code of Ratchet, and looks for the personal data
              of load/people.py wherever data are stored
run.py        runs all of it; report.py writes the outcome
rollouts/     the same for what decides about candidates: `python -m tests.chaos rollouts`
"""
