"""dataset_builder: people's corrections, made into a training set that has passed its gates.

consumes  corrections.submitted · failures.clustered · predictions.rolled_up · subjects.forgotten · tasks.changed
does      keeps corrections; per cycle validates, deduplicates, splits by group, gates and publishes a version
produces  datasets.built · labels.requested (a third opinion) · steps.failed
"""
