"""Kafka: what publishes and consumes for every service, and the clients, topics and dead letters beside it."""
