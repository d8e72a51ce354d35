"""Answers requests, whole or streamed: asks the chosen arm's server, and has the answer recorded before it leaves."""
