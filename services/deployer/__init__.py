"""deployer: decides shadow → canary → primary or back, by an anytime-valid test, and moves the flags.

consumes  adapters.evaluated · shadow.compared · corrections.submitted · requests.observed · subjects.forgotten ·
          tasks.changed
does      keeps each candidate's ledger of pairs; asks people about pairs that differ; bets; guards the canary
produces  rollouts.changed · labels.requested
"""
