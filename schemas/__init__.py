"""The contract between Ratchet's services: pydantic models, and nothing else.

Start with `catalog.py`: every topic with its producers and consumers. There is one file per family of events.
"""
