"""console: the web page on which people review the model's answers and watch the cycles.

consumes  labels.requested · every step's result (failures.clustered, datasets.built, adapters.trained,
          adapters.evaluated, rollouts.changed, cycles.*, steps.*) · predictions.rolled_up · subjects.forgotten ·
          tasks.changed (as a table)
does      stores the review queue and shows it blind; redacts what reviewers type; shows tasks and cycles; erases
          the questions and quotations of erased people
produces  corrections.submitted
"""
