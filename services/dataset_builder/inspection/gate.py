"""What a gate of a data set is: one small class. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from schemas.base import Gate
from schemas.tasks import TaskSpec
from services.dataset_builder.building.personal_data import PersonalData
from services.dataset_builder.checks.measures import Measures
from services.dataset_builder.pipeline import Build, Dataset

MAX_DETAIL = 2_000


@dataclass(frozen=True)
class Inspection:
    """What gates read. `traffic`: how often production gave each answer in the last hours."""

    build: Build
    spec: TaskSpec
    traffic: Mapping[str, int] = field(default_factory=dict)
    personal_data: PersonalData = field(default_factory=PersonalData)

    @property
    def dataset(self) -> Dataset:
        return self.build.dataset

    @property
    def measures(self) -> Measures:
        return self.build.measures


class DatasetGate(ABC):
    """A gate that can fail, says what it measured, and has a way out.

    What too few data cannot tell passes with `measured=None`, and its detail asks for what is missing. `title` is that
    of the report. `reads`, `bar`, `source` (where the bar comes from) and `remedy` (what an operator does when it
    fails) are the columns of `docs/datasets.md`. `to_know`: what to do when it is unknown.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reads: ClassVar[str]
    bar: ClassVar[str]
    source: ClassVar[str]
    remedy: ClassVar[str]
    to_know: ClassVar[str] = "Have more answers corrected in the console."
    tasks: ClassVar[str] = "all"
    """Which tasks have it: all, those with labels, or classifications."""

    @classmethod
    def applies_to(cls, spec: TaskSpec) -> bool:
        return {"all": True, "labels": bool(spec.labels), "classification": bool(spec.choices)}[cls.tasks]

    @abstractmethod
    def measure(self, inspected: Inspection) -> Gate: ...

    @classmethod
    def gate(cls, passed: bool, measured: float, required: str, detail: str = "") -> Gate:
        return Gate(
            name=cls.name, passed=passed, measured=round(measured, 4), required=required, detail=detail[:MAX_DETAIL]
        )

    @classmethod
    def unknown(cls, required: str, detail: str) -> Gate:
        return Gate(name=cls.name, passed=True, measured=None, required=required, detail=detail[:MAX_DETAIL])
