"""deployer: decides shadow → canary → primary or back, by an anytime-valid test, and moves the flags.

consumes  adapters.evaluated · shadow.compared · corrections.submitted · requests.observed · subjects.forgotten ·
          tasks.changed
does      records each candidate's pairs in a ledger; asks people about pairs that differ; bets; guards the canary
produces  rollouts.changed · labels.requested
"""
