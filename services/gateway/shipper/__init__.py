"""From the spool to Kafka, redacted: a process beside the gateway."""
