"""What every service stands on: transport, storage, jobs. No business nouns: those are in `schemas/`, `services/`."""
