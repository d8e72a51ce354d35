"""Rollouts under kills: candidates of known quality, people who answer, and an independent check of every move.

    python -m tests.chaos rollouts --rollouts 100 --kills 20

tasks.py    the tasks, and what kinds of candidates they get
engine.py   a model server that serves adapters at once, and says which of them it was asked to prove
system.py   broker, database, flag server, engines, gateway, shadow, deployer and scheduler, each a process of its own
cycles.py   plays trainer and evaluator: publishes one candidate after the other, follows its rollout
people.py   reviewers, who answer the questions about tickets by each candidate's quality
traffic.py  the tasks' users
kills.py    kill -9 of every part at random moments
watch.py    looks at flags and engines twice a second
record.py   reads topics, histories and the deployer's ledger after the run
checks/     recomputes from these what was decided, without code of the deployer
run.py      runs all of it; report.py writes the outcome
"""
