"""dataset_builder: turns people's corrections into a versioned dataset that has passed its gates.

consumes  corrections.submitted · feedback.given · failures.clustered · predictions.rolled_up · subjects.forgotten ·
          tasks.changed · cycles.finished
does      stores corrections of reviewers and users; per cycle validates rows, decides which are held out, gates and
          publishes a version
produces  datasets.built · labels.requested (tie-breaks, suspicious labels) · steps.progressed · steps.failed
"""
