"""shadow: replays live traffic on the candidate, off the request path.

consumes  predictions.logged · subjects.forgotten · rollouts.changed and tasks.changed (as tables)
does      samples eligible predictions within the task's budget and asks the candidate the same questions; waits while
          the engine is busy or its flag is off, and catches up
produces  shadow.compared

It stores counts and ids of requests, so it has nothing to delete; but what forgotten people asked is not asked again.
"""
