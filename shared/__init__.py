"""What several services use: Kafka, storage, the spool, privacy, jobs, HTTP. It knows the contract and no service."""
