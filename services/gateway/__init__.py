"""gateway: the application's way in, and the only service on its request path.

consumes  HTTP (OpenAI's API) · Unleash flags · tasks.changed (as a table)
does      answers from the arm the flags choose, measures confidence, takes feedback and answers made elsewhere
produces  predictions.logged (acknowledged before the answer leaves) · feedback.given · requests.observed
"""
