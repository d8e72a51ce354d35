"""`ratchet loop`: one turn of the wheel on the real stack, played live in the terminal.

command.py   the typer function; turns failures into an exit code with a way out · stack.py brings up what is not
turn.py      the order of the steps, and what a turn ends with · state.py what it knows meanwhile
data.py      a CSV file to clean rows, with clear errors · parts.py splits them: traffic, live, held-out
taskfile.py  the task's YAML, made or copied, and put where the scheduler finds it
asking.py    held-out questions, traffic, corrections · proof.py the cycle · live.py shadow to promoted
reviewers.py people, played from the data's labels through the console's API, blind and not always right
clients.py   the gateway, the console and the scheduler, as an application, people and an operator see them
cycle.py     follows a cycle on the console · ledger.py pairs and labels to wealth · watch.py reads them from Kafka
flags.py     moves Unleash's flags by hand, to prove that going back takes seconds
measure.py   answers to accuracy with its interval, and latency
show.py      what is seen in the terminal · report.py, plots.py  report.json and report.html
"""
