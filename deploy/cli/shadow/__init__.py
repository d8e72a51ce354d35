"""`ratchet shadow`: what became of a task's requests, and what a candidate would have answered last week."""
