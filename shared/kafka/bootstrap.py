"""aiokafka, made to refuse a broker that does not know itself yet.

A Kafka broker that is just starting may answer before it knows of any broker, itself included. aiokafka takes this for
a cluster without topics and lives on the one connection that it has; when that breaks it knows nobody to turn to, and
never comes back (`Unable to update metadata from []`), while its consumers and producers wait for ever. So such a
start fails here, and whoever starts the client tries again, as with a broker that is away.
"""

from __future__ import annotations

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError

_bootstrap = AIOKafkaClient.bootstrap


async def _bootstrap_or_refuse(client: AIOKafkaClient) -> None:
    await _bootstrap(client)
    if not client.cluster.brokers():
        await client.close()
        client._conns.clear()  # Closed ones would be in the way of the next try.
        raise KafkaConnectionError("the broker answers but knows of no broker yet: it is still starting")


def refuse_unready_brokers() -> None:
    """From now on, in this process: `start()` of every aiokafka client raises KafkaConnectionError at such a broker."""
    AIOKafkaClient.bootstrap = _bootstrap_or_refuse
