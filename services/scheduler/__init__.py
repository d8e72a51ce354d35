"""scheduler: task files become events, and every task's cycle is started in time and followed to its end.

consumes  tasks.changed (its own, as a table) · failures.clustered · datasets.built · adapters.trained ·
          adapters.evaluated · rollouts.changed · steps.failed · steps.progressed
does      reads `<home>/tasks/*.yaml`; starts cycles by cron or by `POST /api/cycles`; notices a late step;
          announces by `POST /api/subjects/forget` that a person is to be forgotten
produces  tasks.changed · cycles.started · cycles.finished · steps.failed (a late step) · subjects.forgotten
"""
