"""evaluator: compares a candidate with production on the frozen evaluation set, before any live traffic.

consumes  adapters.trained · rollouts.changed (as a table: the current primary)
does      asks both arms through vLLM, in a job; scores the answers; checks the offline gates
produces  adapters.evaluated · steps.progressed · steps.failed
"""
