"""Benchmarks: `make bench`. Each compares with a peer that does the same work in the same run."""
