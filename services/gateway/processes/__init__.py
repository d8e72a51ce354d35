"""Starts and supervises the gateway's other processes: shippers, and workers where there are several."""
