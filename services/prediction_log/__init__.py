"""prediction_log: every prediction and every piece of feedback, in the lake, exactly once.

consumes  predictions.logged · feedback.given · subjects.forgotten
does      appends batches to Delta tables, the Kafka offsets in the same commit; rolls hours up; forgets people
produces  predictions.rolled_up
"""
