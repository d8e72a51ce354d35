"""For applications whose answers do not pass the gateway: log them, and say later what users thought of them.

    client = ratchet.Client("http://gateway:28080", key="rk-…")
    name = client.log("support-desk", messages, answer, latency_ms=412, model="gpt-4o", user="customer-4711")
    client.feedback(name, "thumbs", positive=False)

Standard library only. Nothing here waits for the network, and nothing raises where the gateway is away.
"""

from ratchet.client import Client
from ratchet.spans import Spans

__all__ = ["Client", "Spans"]
