"""failure_miner: finds what the model gets wrong, asks people about samples, and groups mistakes into failure modes.

consumes  predictions.logged · feedback.given · corrections.submitted
          cycles.started · subjects.forgotten · tasks.changed
does      draws samples with true probabilities (docs/datasets.md); stores suspects with their embeddings; on a
          cycle clusters them into modes that keep their identity, whole in the artifact store
produces  labels.requested · failures.clustered · steps.failed
"""
