"""`ratchet loop`: one turn of the wheel on the real stack, played live in the terminal.

command.py   the typer function; turns failures into an exit code with a way out
turn.py      the order of the steps, and what a turn ends with
data.py      a CSV file to clean rows, with clear errors · parts.py splits them: traffic, live, held-out
taskfile.py  the task's YAML, made or copied, and put where the scheduler finds it
clients.py   the gateway, the console and the scheduler, as an application and people see them
reviewers.py people, played from the data's labels through the console's API, blind and not always right
measure.py   answers to accuracy with its interval, and latency
cycle.py     follows a cycle on the console · live.py sends fresh traffic while the candidate proves itself
ledger.py    pairs and labels to the running wealth · watch.py reads them from Kafka, for show only
flags.py     moves Unleash's flags by hand, to prove that going back takes seconds
show.py      what is seen in the terminal · report.py, plots.py  report.json and report.html
"""
