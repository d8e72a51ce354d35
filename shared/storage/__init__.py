"""Storage: PostgreSQL, the consumer offsets stored in it, and the artifact store."""
