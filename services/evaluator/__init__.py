"""evaluator: compares a candidate with production on the frozen evaluation and golden sets, before any live traffic.

consumes  adapters.trained · evaluations.requested (a candidate that waited, against the primary of today) ·
          rollouts.changed (as a table: the current primary) · cycles.finished (one that a person ended)
does      asks both arms through vLLM, in a job; scores the answers; checks the offline gates;
          stores probes, by which the deployer proves that a replica serves the adapter
produces  adapters.evaluated · steps.progressed · steps.failed
"""
