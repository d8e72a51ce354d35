"""Observability: metrics, traces, and the status file of the shipper."""
