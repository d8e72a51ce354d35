"""console: people see the wheel turn, and correct what the model gets wrong.

consumes  labels.requested · every step's result (failures.clustered, datasets.built, adapters.trained,
          adapters.evaluated, rollouts.changed, cycles.*, steps.*) · predictions.rolled_up · subjects.forgotten ·
          tasks.changed (as a table)
does      keeps the review queue, blind; redacts what reviewers type; shows tasks and cycles; erases
          what belongs to a forgotten person
produces  corrections.submitted
"""
