"""The contract between Ratchet's services: pydantic models, and nothing else.

Start with `catalog.py`: every topic, who produces it, who consumes it. One file per family of events.
"""
