"""prediction_log: stores every prediction and every piece of feedback in the lake, exactly once.

consumes  predictions.logged · feedback.given · requests.observed · subjects.forgotten · tasks.changed (as a table)
does      appends batches to Delta tables, with their Kafka offsets in the same commit; rolls hours up; erases people;
          compacts, vacuums and applies each task's retention; erasure and retention also delete kept media
produces  predictions.rolled_up
"""

import os

# Roll-ups must leave the cores to appending. Polars reads this once, at its import.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
