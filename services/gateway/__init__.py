"""gateway: where applications send their requests; the only service on the request path.

consumes  HTTP (OpenAI's and Anthropic's APIs) · Unleash flags · tasks.changed (as a table) ·
          predictions.submitted (in the shipper)
does      answers from the arm that the flags choose, measures confidence, takes feedback and predictions made elsewhere
produces  predictions.logged · feedback.given · requests.observed

A prediction's event is durable before its answer leaves. Of a streamed answer only the last pieces are held back until
then: the one with the finish reason, and what follows it. Pictures, sound and documents that a task keeps are durable
then, too; the shipper uploads them to the artifact store.
"""
