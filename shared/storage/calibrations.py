"""Adapters' calibrations in the artifact store, each with the second opinion that it was fitted with."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from schemas.adapters import CALIBRATION_FILE, CALIBRATIONS, OPINION_FILE, Calibration
from shared.model.confidence import Opinion
from shared.storage.artifacts import ArtifactStore

if TYPE_CHECKING:
    from shared.model.second_opinion import SecondOpinion


class AdapterCalibration(NamedTuple):
    """`opinion`: None where the calibration is of the model's own scores."""

    calibration: Calibration
    opinion: SecondOpinion | None = None

    def opinion_on(self, question: str) -> Opinion | None:
        """Return what the second opinion says of the answers to a question (`question_text`)."""
        return None if self.opinion is None else partial(self.opinion.log_odds, question)


def read_calibration(store: ArtifactStore, adapter: str) -> AdapterCalibration:
    """Return what the store has of an adapter. Raises DependencyUnavailable, OSError, or ValueError."""
    folder = store.fetch(store.address(CALIBRATIONS, adapter))
    calibration = Calibration.model_validate_json((folder / CALIBRATION_FILE).read_bytes())
    if calibration.opinion is None:
        return AdapterCalibration(calibration)
    from shared.model.second_opinion import SecondOpinion  # It loads numpy: only where an adapter has one.

    return AdapterCalibration(calibration, SecondOpinion.from_bytes((folder / OPINION_FILE).read_bytes()))
