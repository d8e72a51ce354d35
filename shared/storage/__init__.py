"""Storage: PostgreSQL, the consumer offsets stored in it, the artifact store, and kept media in it."""
