"""dataset_builder: turns people's corrections into a versioned dataset that has passed its gates.

consumes  corrections.submitted · failures.clustered · predictions.rolled_up · subjects.forgotten · tasks.changed
does      stores corrections; per cycle validates, deduplicates, splits by group, gates and publishes a version
produces  datasets.built · labels.requested (a tie-break between two reviewers) · steps.failed
"""
