"""`ratchet dataset`: a task's versions, the inspection of one, how two differ, and copies for other tools."""

from deploy.cli.dataset.commands import app as app
