"""gateway: where applications send their requests; the only service on the request path.

consumes  HTTP (OpenAI's API) · Unleash flags · tasks.changed (as a table)
does      answers from the arm that the flags choose, measures confidence, takes feedback and predictions made elsewhere
produces  predictions.logged (durable before the answer leaves) · feedback.given · requests.observed
"""
