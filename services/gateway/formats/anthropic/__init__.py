"""Anthropic's Messages API, answered through the model server's chat API.

So that a task's labels, confidence and fallback work as for every other API. The conversion is the one of vLLM's own
`/v1/messages`, so that the model sees the same prompt; where it differs, the comment says why. Plain objects in, plain
objects out: no I/O.
"""
