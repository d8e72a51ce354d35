"""`ratchet loop`: one full cycle on the real stack, shown live in the terminal.

story.py      the whole loop from top to bottom; steps/ has its parts: traffic, the learning cycle, the live test
data/         a CSV file to clean rows, their split into traffic, live and held-out, and the task's YAML
reviewers.py  simulated people, who answer through the console's API, blind and not always right, or with a fault
clients.py    the gateway, console, scheduler and deployer, as an application, people and an operator use them
pairs.py      the deployer's counts of shadow pairs and labels, and the wealth over time
report/       measures answers; writes report.json and report.html
state.py      what the steps share · settings.py options and limits · errors.py how a step ends early
stack.py      brings up what is not running · terminal.py steps, progress bars and tables
"""
