"""Answering: the use case behind every request, whole or streamed."""
