"""Recording: the events of a request, written to the local spool before the answer leaves."""
