"""The artifact store: immutable folders named by content, on a disk or in an object store (`s3://`, through obstore).

    <artifacts>/datasets/<dataset_id>/   <artifacts>/adapters/<adapter>/   <artifacts>/media/ (media.py)
    <artifacts>/calibrations/<adapter>/  <artifacts>/probes/<adapter>/ (schemas/adapters.py)
    <artifacts>/golden/<set_id>/         <artifacts>/failures/<task>-<hash>/ (golden_sets.py, failure_modes.py)

A folder is written completely and never changed. On a disk it appears by a rename; in an object store `manifest.json`
is written last, and a folder without it does not exist. An object store's address and keys come from the environment,
`AWS_…`, as the lake's do.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from shared.errors import DependencyUnavailable, StepImpossible
from shared.files import rename_folder, write_atomically
from shared.identity import file_hash

MANIFEST = "manifest.json"
_ABANDONED_SECONDS = 86_400.0
"""A folder that has not got its name so long after it was last changed is nobody's any more."""
RETRY = timedelta(seconds=30)
"""How long a request to an object store is repeated. Short, because the callers retry."""


class ArtifactNotFound(DependencyUnavailable):
    """The store answers and has no complete folder at this address (yet)."""


class ArtifactStore:
    """Publishes local folders by kind and name, and fetches them as local folders."""

    def __init__(self, uri: str, cache: Path) -> None:
        self._uri = uri.rstrip("/")
        self._cache = cache
        self._local = is_local(uri)

    def address(self, kind: str, name: str) -> str:
        return f"{self._uri}/{kind}/{name}"

    def publish(self, folder: Path, kind: str, name: str) -> str:
        """Copy `folder`, which must hold manifest.json, to the store; returns its address. Idempotent.

        Raises DependencyUnavailable, also where the store's disk is full.
        """
        if not (folder / MANIFEST).exists():
            raise ValueError(f"{folder} has no {MANIFEST}")
        address = self.address(kind, name)
        if self._local:
            try:
                self._publish_locally(folder, local_path(address))
            except OSError as error:
                raise DependencyUnavailable(f"{address} was not written: {error}", "Is its disk full?") from error
        else:
            self._publish_remotely(folder, address)
        return address

    def publish_files(self, files: Mapping[str, bytes], kind: str, name: str) -> str:
        """Do the same with a folder of these files, by their names."""
        with tempfile.TemporaryDirectory(prefix=f"ratchet-{kind}-") as folder:
            for file, data in files.items():
                write_atomically(Path(folder) / file, data)
            return self.publish(Path(folder), kind, name)

    def fetch(self, address: str) -> Path:
        """Return the folder at `address` on this machine. Raises ArtifactMissing, or DependencyUnavailable.

        An event names the address, so one that is outside of this store is never read: it is as good as missing.
        """
        if not self._has(address):
            raise ArtifactNotFound(
                f"{address[:200]} is outside of {self._uri}", "Is RATCHET_ARTIFACTS the same everywhere?"
            )
        if not is_local(address):
            return self._fetch_remotely(address)
        path = local_path(address)
        if not (path / MANIFEST).exists():
            raise _missing(address)
        return path

    def fetch_whole(self, address: str) -> Path:
        """Do the same for a step that learns or measures from all of the folder: it is as it was published.

        Raises StepImpossible where a file is not the one that the manifest names, by its SHA-256.
        """
        folder = self.fetch(address)
        if (damaged := _damaged_file(folder)) is not None:
            raise StepImpossible(
                f"{folder / damaged} is not the file that its manifest names",
                "Put the folder back from a backup of the artifact store, or start a new cycle: ratchet cycle TASK",
            )
        return folder

    def names(self, kind: str) -> list[str]:
        """Return the names of a kind's folders, complete or not. Raises DependencyUnavailable or OSError."""
        if self._local:
            folder = local_path(f"{self._uri}/{kind}")
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        with _object_store(self._uri) as store:
            prefixes = store.list_with_delimiter(kind)["common_prefixes"]
        return sorted(prefix.rpartition("/")[2] for prefix in prefixes)

    def lines(self, kind: str, name: str, file: str) -> Iterator[bytes]:
        """Read one file of a folder, without fetching the others. Raises DependencyUnavailable or OSError."""
        address = self.address(kind, name)
        if self._local:
            with (local_path(address) / file).open("rb") as local:
                yield from local
            return
        with _object_store(address) as store:
            remote = obstore.open_reader(store, file)
            while line := remote.readline():
                yield bytes(line)

    def _has(self, address: str) -> bool:
        store, wanted = (str(local_path(uri)) if is_local(uri) else uri for uri in (self._uri, address))
        inside = wanted.removeprefix(f"{store}/")
        return inside != wanted and not {"", ".", ".."}.intersection(inside.split("/"))

    def _publish_locally(self, folder: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}."
        if not target.exists():
            temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            try:
                shutil.copytree(folder, temporary, dirs_exist_ok=True)
                temporary.chmod(0o755)
                rename_folder(temporary, target)
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                if not target.exists():  # Else another process published the same content first.
                    raise
        for left in [path for path in target.parent.iterdir() if _is_abandoned(path, prefix)]:
            shutil.rmtree(left, ignore_errors=True)

    def _publish_remotely(self, folder: Path, address: str) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        with _object_store(address) as store:
            if _is_complete(store):
                return
            for path in sorted(files, key=lambda path: path == folder / MANIFEST):
                with wrong_bucket(address):
                    store.put(path.relative_to(folder).as_posix(), path)

    def _fetch_remotely(self, address: str) -> Path:
        target = self._cache / address.partition("://")[2]
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in [path for path in target.parent.iterdir() if _is_abandoned(path)]:
            shutil.rmtree(left, ignore_errors=True)
        with _object_store(address) as store, tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as temporary:
            if not _is_complete(store):
                raise _missing(address)
            folder = Path(temporary) / target.name
            for path in (object["path"] for batch in store.list() for object in batch):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                with (folder / path).open("wb") as file:
                    file.writelines(store.get(path))
            try:
                rename_folder(folder, target)
            except OSError:  # Another thread or process fetched it first.
                if not target.exists():
                    raise
        return target


def _is_abandoned(path: Path, own: str | None = None) -> bool:
    """Return True for what a killed process left of a folder a day ago, or of that with our `own` name.

    It has people's texts, and would be counted as a folder.
    """
    if not path.name.startswith("."):
        return False
    if own is not None and path.name.startswith(own):
        return True
    try:
        # Its time of change: a copied folder has the modification time of what it was copied from.
        return time.time() - path.stat().st_ctime > _ABANDONED_SECONDS
    except FileNotFoundError:
        return False


def is_local(address: str) -> bool:
    """Return True for a folder."""
    return "://" not in address or address.startswith("file://")


def local_path(address: str) -> Path:
    """Return the folder of a local address."""
    return Path(address.removeprefix("file://"))


def _missing(address: str) -> ArtifactNotFound:
    return ArtifactNotFound(f"no artifact at {address}", "Is RATCHET_ARTIFACTS the same everywhere?")


def _damaged_file(folder: Path) -> str | None:
    """Return the name of a file whose SHA-256 is not that of the folder's manifest, if it has any; None: all are."""
    try:
        files: dict[str, str] = json.loads((folder / MANIFEST).read_bytes()).get("files", {})
    except ValueError:
        return MANIFEST
    for name, expected in files.items():
        path = folder / name
        if not path.exists() or file_hash(path) != expected:
            return name
    return None


def _is_complete(store: ObjectStore) -> bool:
    try:
        store.head(MANIFEST)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _object_store(address: str) -> Iterator[ObjectStore]:
    """Give access to the objects below an address. Raises DependencyUnavailable where the server refuses or is away.

    A missing object stays FileNotFoundError.
    """
    with store_errors(address):
        yield from_url(address, retry_config={"retry_timeout": RETRY})


@contextmanager
def wrong_bucket(address: str) -> Iterator[None]:
    """Raise DependencyUnavailable for a write that the store answers with 404: to obstore that is a missing file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DependencyUnavailable(
            f"the store of {address} answers 404 to a write", "Does the bucket exist, by the name in RATCHET_ARTIFACTS?"
        ) from error


@contextmanager
def store_errors(address: str) -> Iterator[None]:
    """Raise obstore's errors, but that of a missing object, as DependencyUnavailable."""
    try:
        yield
    except BaseError as error:
        reason = str(error).partition("\n")[0]
        way_out = "Check the S3 server, and the AWS_… variables of this process: ratchet status"
        raise DependencyUnavailable(f"the artifacts at {address} are unavailable: {reason}", way_out) from error
