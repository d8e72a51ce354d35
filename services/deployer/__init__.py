"""deployer: decides shadow → canary → primary or back, by an anytime-valid test, and moves the flags.

consumes  adapters.evaluated · steps.failed (of a candidate that waits for a verdict) · shadow.compared ·
          corrections.submitted · requests.observed · feedback.given · subjects.forgotten · tasks.changed
does      keeps the adapters that the rollouts need loaded and proved on every vLLM replica;
          records each candidate's pairs in a ledger; asks people about pairs that differ; bets; guards the canary
produces  rollouts.changed · labels.requested · evaluations.requested (the primary changed while a candidate waited)
"""
