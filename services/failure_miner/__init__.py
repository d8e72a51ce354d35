"""failure_miner: what the model gets wrong, found, asked about, and grouped into failure modes.

consumes  predictions.logged · feedback.given · corrections.submitted
          cycles.started · subjects.forgotten · tasks.changed
does      keeps suspects with their embeddings; on a cycle clusters them into modes that keep their identity
produces  labels.requested · failures.clustered · steps.failed
"""
