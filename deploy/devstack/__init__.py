"""The local stack without containers: broker, PostgreSQL, Unleash, vLLM and the services, on one machine.

Reading order: `config.py` (settings and paths) → `part.py` (the interface of a part) → `parts/` → `supervision/`
(restarts, identifies and stops processes) → `startup.py` (starts parts in parallel) → `stack.py` (up, down, status).
`install/` installs what the parts need.
"""
