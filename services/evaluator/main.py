"""The wiring of the evaluator."""

from __future__ import annotations

from functools import partial

from schemas.rollouts import RolloutChanged
from services.evaluator.handlers import Handlers
from services.evaluator.settings import KEY_VARIABLE, EvaluatorSettings
from shared.jobs import Jobs
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.service import Service, run_alone

NAME = "evaluator"


def build(settings: EvaluatorSettings | None = None) -> Service:
    """Build the service without starting it."""
    settings = settings or EvaluatorSettings.load()
    broker = build_broker(settings, NAME)
    consumers = Consumers(broker, NAME, settings)
    jobs = Jobs(settings.jobs_folder, "services.evaluator.job", {KEY_VARIABLE: settings.server_key()})
    rollouts = consumers.table(RolloutChanged)
    handlers = Handlers(settings, jobs, Publisher(broker, NAME), rollouts)
    handlers.subscribe(consumers)
    return Service(NAME, broker, background=[handlers.follow_jobs], connected=[partial(rollouts.read_to_end, settings)])


def main() -> None:
    run_alone(build)


if __name__ == "__main__":
    main()
