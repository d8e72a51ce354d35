"""scheduler: publishes task files as events, starts every task's cycle on time and follows it to its end.

consumes  tasks.changed (its own, as a table) · failures.clustered · datasets.built · adapters.trained ·
          adapters.evaluated · rollouts.changed · steps.failed · steps.progressed
does      reads `<home>/tasks/*.yaml`; publishes golden sets as artifacts; starts cycles by cron or by
          `POST /api/cycles`; reports a late step, and in `GET /metrics` how long each is silent; announces the
          erasure of a person by `POST /api/subjects/forget`; as it starts, stores what it announced and its database
          lacks
produces  tasks.changed · cycles.started · cycles.finished · steps.failed (a late step) · subjects.forgotten
"""
