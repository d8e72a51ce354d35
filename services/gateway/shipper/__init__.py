"""The shipper process: from the spool to Kafka, redacted."""
