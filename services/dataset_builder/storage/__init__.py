"""What the builder keeps in PostgreSQL, schema `dataset_builder`: corrections, places, traffic, outcomes."""
