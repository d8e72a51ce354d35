"""shadow: replays live traffic on the candidate, off the request path.

consumes  predictions.logged · rollouts.changed and tasks.changed (as tables)
does      samples eligible predictions within the task's budget and asks the candidate the same questions; waits while
          the engine is busy or its flag is off, and catches up
produces  shadow.compared

It stores counts and ids of requests, so it has nothing to forget. When predictions are read again from an earlier
offset, pairs of forgotten people may be published again; the deployer, which stores pairs, drops them.
"""
