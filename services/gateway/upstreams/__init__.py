"""Requests to model servers: load balancing, circuit breakers, retries, HTTP."""
