"""A request while it is being answered: what the answerers share and the recorder records."""

from __future__ import annotations

from collections.abc import Sequence

from services.gateway.asgi.exchange import Exchange
from services.gateway.formats.api import ApiRequest
from services.gateway.routing.arms import Arm
from services.gateway.tasks.served import ServedTask
from shared.tracing import TraceHeaders


class InFlightRequest:
    """A request that is being answered.

    `prediction_ids`: one for each answer asked for; a request without predictions has one, for its observation.
    `trace`: the trace headers of its events. `instead_of`: the chosen arm, once another one had to stand in.
    """

    __slots__ = ("exchange", "instead_of", "parsed", "prediction_ids", "task", "trace", "user_hash")

    def __init__(
        self,
        exchange: Exchange,
        task: ServedTask,
        parsed: ApiRequest,
        prediction_ids: Sequence[str],
        user_hash: str | None,
        trace: TraceHeaders,
    ) -> None:
        self.exchange = exchange
        self.task = task
        self.parsed = parsed
        self.prediction_ids = prediction_ids
        self.user_hash = user_hash
        self.trace = trace
        self.instead_of: Arm | None = None
