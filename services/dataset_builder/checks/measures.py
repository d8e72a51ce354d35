"""What is measured of a build for its gates and its report. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.quality import QuestionCount
from services.dataset_builder.building.places import Exclusions
from services.dataset_builder.checks.agreement import Agreement
from services.dataset_builder.checks.distribution import Distribution
from services.dataset_builder.checks.label_noise import LabelNoise
from services.dataset_builder.checks.poisoning import VoterShift


@dataclass(frozen=True)
class Measures:
    """`agreement` is None without a question that two people answered; `shifts` are the voters that were held back;
    `exclusions` are the near-copies of held-out rows; `frozen` are the hashes of the golden set's questions;
    `reliability` is how often each reviewer is right, which weighs their votes; `questions`: see `ResponseRates`.
    """

    agreement: Agreement | None = None
    distribution: Distribution = field(default_factory=Distribution)
    shifts: tuple[VoterShift, ...] = ()
    noise: LabelNoise = field(default_factory=LabelNoise)
    exclusions: Exclusions = field(default_factory=Exclusions)
    frozen: frozenset[str] = frozenset()
    reliability: Mapping[str, float] = field(default_factory=dict)
    questions: tuple[QuestionCount, ...] = ()
