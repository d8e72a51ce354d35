"""What people tell a rollout.

commands   pause, resume, promote, rollback: each with a name and a reason, each a move of the history
http       the API that `ratchet rollout` asks
webhook    tells a chat about every move
"""
