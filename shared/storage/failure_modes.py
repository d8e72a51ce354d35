"""Failure modes in the artifact store (schemas/failures.py): the miner publishes them, the dataset builder reads them.

An event has room for the largest modes only; here are all, and each suspect's mode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel

from schemas.failures import FAILURES, MEMBERS_FILE, MODES_FILE, FailureMode, FailuresManifest, ModeMember
from shared.errors import StepImpossible
from shared.identity import content_hash
from shared.storage.artifacts import MANIFEST, ArtifactNotFound, ArtifactStore


def publish_modes(store: ArtifactStore, task: str, modes: Sequence[FailureMode], members: Mapping[str, str]) -> str:
    """Publish failure modes, and the mode of each prediction; returns the address. Idempotent.

    The modes are without exemplars: artifacts stay when a person is forgotten, and these hold no text of anyone.
    """
    files = {
        MODES_FILE: _lines(mode.without(lambda _: True) for mode in modes),
        MEMBERS_FILE: _lines(ModeMember(prediction_id=p, mode_id=mode_id) for p, mode_id in sorted(members.items())),
    }
    manifest = FailuresManifest(
        task=task,
        modes=len(modes),
        members=len(members),
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    name = f"{task}-{content_hash(task, *(files[file] for file in sorted(files)))}"
    return store.publish_files({**files, MANIFEST: manifest.model_dump_json(indent=2).encode()}, FAILURES, name)


def read_members(store: ArtifactStore, address: str | None) -> dict[str, str]:
    """Return the failure mode of each prediction that has one; none where a cycle has no address.

    Raises StepImpossible for a folder that is gone or damaged, DependencyUnavailable while the store is away.
    """
    if address is None:
        return {}
    try:
        lines = (store.fetch(address) / MEMBERS_FILE).read_bytes().splitlines()
        members = [ModeMember.model_validate_json(line) for line in lines]
    except ArtifactNotFound as error:  # It is published before the event that names it, so it was deleted.
        way_out = "Is RATCHET_ARTIFACTS the same everywhere? Start a new cycle: it publishes them again."
        raise StepImpossible(f"the failure modes are not in the artifact store, at {address}", way_out) from error
    except (ValueError, OSError) as error:
        way_out = "Delete that folder and start a new cycle."
        raise StepImpossible(f"the failure modes at {address} cannot be read: {error}", way_out) from error
    return {member.prediction_id: member.mode_id for member in members}


def _lines(rows: Iterable[BaseModel]) -> bytes:
    return b"".join(row.model_dump_json().encode() + b"\n" for row in rows)
