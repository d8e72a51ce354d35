"""Personal data: redacted before rest, encrypted while raw, erased when a person asks, dropped when old."""
