"""console: people see the wheel turn, and correct what the model gets wrong.

consumes  labels.requested · every step's result (failures.clustered, datasets.built, adapters.trained,
          adapters.evaluated, rollouts.changed, cycles.*, steps.*) · predictions.rolled_up · tasks.changed (as a table)
does      keeps the review queue, blind; shows tasks and cycles; takes "forget me"
produces  corrections.submitted · subjects.forgotten
"""
