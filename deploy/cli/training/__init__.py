"""`ratchet train`: a training by hand, a sweep of its settings, and what it takes."""
