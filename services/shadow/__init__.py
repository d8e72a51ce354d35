"""shadow: what would the candidate have answered? Live traffic, replayed off the request path.

consumes  predictions.logged · rollouts.changed (as a table)
does      picks eligible, sampled predictions within the budget and asks the candidate the same
produces  shadow.compared
"""
