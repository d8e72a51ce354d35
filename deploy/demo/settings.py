"""What the user asked for, where the services are, and the time limits on a slow machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field

from deploy.devstack.config import HOST, PORTS
from schemas.tasks import TaskKind
from shared.addresses import client_address
from shared.settings import Settings


class LoopSettings(Settings):
    """What `ratchet loop` needs to know beyond the stack."""

    gateway_host: str = HOST
    gateway_port: int = PORTS["gateway"]
    console_host: str = HOST
    console_port: int = PORTS["console"]
    scheduler_host: str = HOST
    scheduler_port: int = PORTS["scheduler"]
    deployer_host: str = HOST
    deployer_port: int = PORTS["deployer"]
    loop_time_limit_factor: float = Field(default=1.0, gt=0.0, description="Factor of every time limit of the loop.")

    @property
    def gateway_url(self) -> str:
        return f"http://{client_address(self.gateway_host, self.gateway_port)}"

    @property
    def console_url(self) -> str:
        return f"http://{client_address(self.console_host, self.console_port)}"

    @property
    def scheduler_url(self) -> str:
        return f"http://{client_address(self.scheduler_host, self.scheduler_port)}"

    @property
    def deployer_url(self) -> str:
        return f"http://{client_address(self.deployer_host, self.deployer_port)}"


@dataclass(frozen=True)
class DataOptions:
    """The file to use and how much of it: a CSV file of labels, JSON lines of other kinds. Without a path: what is
    shipped for the kind; nothing is for a generation. `schema`: the file of the extraction's JSON Schema, or of the
    functions; None: the one beside the data. `prompt`: a generation's system prompt; None: to summarise."""

    path: Path | None = None
    text_column: str = "text"
    label_column: str = "label"
    max_labels: int = 10
    max_corrections: int | None = None
    """Per label, or of all objects or texts; None: as many as suit the data."""
    kind: TaskKind = TaskKind.CLASSIFICATION
    schema: Path | None = None
    prompt: str | None = None

    @property
    def schema_path(self) -> Path | None:
        """The file of the schema of the user's own objects, or of the user's own functions."""
        suffix = ".tools.json" if self.kind is TaskKind.TOOLS else ".schema.json"
        return self.schema or (None if self.path is None else self.path.with_suffix(suffix))


class Fault(StrEnum):
    """A fault that the simulated reviewers put into their labels, to see it stopped before anything is trained."""

    NOISE = "noise"
    """A large share of the labels is wrong, each reviewer's own."""
    SHUFFLED_LABELS = "shuffled_labels"
    """Each text has the label of some other text, the same for all reviewers: nothing can be learned."""
    ONE_CLASS = "one_class"
    """Everything gets the same label."""

    @property
    def gates(self) -> frozenset[str]:
        """The gates of the data set of which at least one must name the fault."""
        return _GATES_OF_FAULTS[self]


_GATES_OF_FAULTS = {
    Fault.NOISE: frozenset({"agreement", "label_noise"}),
    Fault.SHUFFLED_LABELS: frozenset({"labels_predictable", "label_noise"}),
    Fault.ONE_CLASS: frozenset({"labels_to_learn"}),
}


@dataclass(frozen=True)
class PlannedMistakes:
    """How often simulated reviewers err on purpose, as shares of their answers.

    Together they leave two reviewers in agreement on 91 % of the questions: a little over what a data set needs.
    """

    wrong_share: float = 0.03
    disagree_share: float = 0.03
    """Of the questions put to a second person, those that this person answers differently."""
    seed: int = 20

    @classmethod
    def of(cls, fault: Fault | None, wrong_share: float, disagree_share: float, seed: int) -> Self:
        """Return the mistakes beside a fault: none where the fault itself says who is wrong, or how often."""
        if fault is Fault.ONE_CLASS:
            return cls(0.0, 0.0, seed)
        return cls(wrong_share, 0.0 if fault is Fault.NOISE else disagree_share, seed)


@dataclass(frozen=True)
class LoopOptions:
    """What the user asked for on the command line."""

    data: DataOptions = field(default_factory=DataOptions)
    mistakes: PlannedMistakes = field(default_factory=PlannedMistakes)
    task_name: str | None = None
    report: Path = Path("report")
    fault: Fault | None = None

    @property
    def seed(self) -> int:
        """Of everything drawn at random: the split, the shuffled labels and the mistakes."""
        return self.mistakes.seed
