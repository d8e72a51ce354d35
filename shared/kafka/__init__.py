"""Kafka: how every service publishes and consumes, with its clients, topics and dead letters."""
