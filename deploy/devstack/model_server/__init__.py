"""Serves whole models by name: wakes one vLLM for each when it is asked, and lets at most two be awake."""
