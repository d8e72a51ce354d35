"""Makes a request's predictions durable before the answer leaves: events, written to the local spool."""
