"""Benchmarks: `make bench`. Each compares Ratchet with a peer that does the same work in the same run."""
