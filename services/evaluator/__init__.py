"""evaluator: candidate and production side by side on the frozen evaluation set, before any live traffic.

consumes  adapters.trained · rollouts.changed (as a table: who serves now)
does      asks both through vLLM, in a job; scores; puts the candidate before the gates
produces  adapters.evaluated · steps.progressed · steps.failed
"""
