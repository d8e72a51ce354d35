"""prediction_log: every prediction and every piece of feedback, in the lake, exactly once.

consumes  predictions.logged · feedback.given · requests.observed · subjects.forgotten · tasks.changed (as a table)
does      appends batches to Delta tables, the Kafka offsets in the same commit; rolls hours up; forgets people;
          compacts, vacuums and lets what is older than a task keeps go
produces  predictions.rolled_up
"""

import os

# Counting hours must leave the cores to appending. Polars reads this once, at its import.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
