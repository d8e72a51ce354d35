"""The parts of the local stack: broker, PostgreSQL, Unleash, vLLM, the services."""
