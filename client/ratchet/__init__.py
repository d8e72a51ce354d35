"""For applications whose answers do not pass the gateway: log them, and say later what users thought of them.

    client = ratchet.Client("http://gateway:28080", key="rk_...")
    prediction_id = client.log("support-desk", messages, answer, latency_ms=412, model="gpt-4o", user="customer-4711")
    client.feedback(prediction_id, "thumbs", positive=False)

Standard library only. Nothing here waits for the network, and nothing raises when the gateway is unavailable.
"""

from ratchet.client import Client
from ratchet.spans import Spans

__all__ = ["Client", "Spans"]
