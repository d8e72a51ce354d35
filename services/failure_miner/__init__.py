"""failure_miner: finds what the model gets wrong, asks people about it, and groups it into failure modes.

consumes  predictions.logged · feedback.given · corrections.submitted
          cycles.started · subjects.forgotten · tasks.changed
does      stores suspects with their embeddings; on a cycle clusters them into modes that keep their identity
produces  labels.requested · failures.clustered · steps.failed
"""
