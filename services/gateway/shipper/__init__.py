"""The shipper process: from the spool to Kafka, redacted; kept media to the artifact store."""
