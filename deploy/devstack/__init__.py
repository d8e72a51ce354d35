"""The local stack, no containers: broker, PostgreSQL, Unleash, vLLM and the services, on one machine.

Reading order: `config.py` (where everything is) → `part.py` (what a part is) → the parts (`kafka.py`, `postgres.py`,
`unleash.py`, `vllm.py`, `services.py`) → `supervisor.py` (keeps one part alive) → `stack.py` (up, down, status).
`packages.py` and `models.py` install what the parts need.
"""
