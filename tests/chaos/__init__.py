"""Chaos: faults against real processes, and an independent count of what clients were told was accepted.

    python -m tests.chaos --minutes 14 --events 200000 --faults 50

`processes.py` runs broker, database, flag server, a model server that answers at once (`upstream.py`; vLLM is not what
is tested here) and all ten services, each as a process of its own, and starts again at once what ends. `load.py` asks
the gateways and writes to Kafka, and notes in `ledger.py` what was promised to it. `faults.py` kills, stops, fills
disks and freezes by a seeded schedule. `checker.py` then compares the ledger with the lake, reading both by
libraries alone, and `leaks.py` looks for the personal data of `people.py` wherever data rest. `run.py` is the play,
`report.py` what is told of it.
"""
