"""What the deployer stores in PostgreSQL (schema `deployer`).

rollouts.py   every candidate's rollout, and the lock under which a task is decided about
ledger.py     a rollout's pairs, tickets, labels and canary observations
"""
