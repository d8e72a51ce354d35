"""Stores: PostgreSQL, consumer offsets kept in it, and the artifact store."""
