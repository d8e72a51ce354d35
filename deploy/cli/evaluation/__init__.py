"""`ratchet evaluation`: what candidates were judged by, read from the artifact store."""

from deploy.cli.evaluation.commands import app as app
