"""The wiring of the trainer."""

from __future__ import annotations

from functools import partial

from schemas.rollouts import RolloutChanged
from services.trainer.handlers import Handlers
from services.trainer.settings import TrainerSettings
from shared.jobs import Jobs, JobStarter, start_here
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.service import Service, run_alone

NAME = "trainer"


def build(settings: TrainerSettings | None = None) -> Service:
    """Build the service without starting it."""
    settings = settings or TrainerSettings.load()
    broker = build_broker(settings, NAME)
    jobs = Jobs(settings.jobs_folder, "services.trainer.job", {"OMP_WAIT_POLICY": "PASSIVE"}, starter(settings))
    consumers = Consumers(broker, NAME, settings)
    rollouts = consumers.table(RolloutChanged)
    handlers = Handlers(settings, jobs, Publisher(broker, NAME), rollouts)
    handlers.subscribe(consumers)
    return Service(NAME, broker, background=[handlers.follow_jobs], connected=[partial(rollouts.read_to_end, settings)])


def starter(settings: TrainerSettings) -> JobStarter:
    """How a training is started: on this machine, or on Ray, of which it then waits for GPUs and cores."""
    if not settings.trainer_ray:
        return start_here
    from shared.ray_jobs import RayStarter  # Loads Ray, an extra.

    return RayStarter(settings.trainer_ray, settings.trainer_gpus, settings.trainer_threads or 1)


def main() -> None:
    run_alone(build)


if __name__ == "__main__":
    main()
