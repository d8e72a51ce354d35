"""shadow: what would the candidate have answered? Live traffic, replayed off the request path.

consumes  predictions.logged · rollouts.changed (as a table)
does      picks eligible, sampled predictions within the budget and asks the candidate the same
produces  shadow.compared

It stores nothing, so there is nothing here to forget. Where predictions are read again from an earlier offset, pairs of
forgotten people may be published again: the deployer, which keeps pairs, drops them.
"""
