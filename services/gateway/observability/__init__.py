"""Metrics, tracing, and the shipper's status file."""
