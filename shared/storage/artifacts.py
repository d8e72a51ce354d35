"""The artifact store: immutable folders named by content, on a disk or in an object store (fsspec).

    <artifacts>/datasets/<dataset_id>/   <artifacts>/adapters/<adapter>/

A folder is written completely and never changed. On a disk it appears by a rename; in an object store `manifest.json`
is written last, and a folder without it does not exist.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import fsspec

from shared.errors import DependencyUnavailable

MANIFEST = "manifest.json"


class ArtifactStore:
    """Publishes local folders by kind and name, and fetches them as local folders."""

    def __init__(self, uri: str, cache: Path) -> None:
        self._uri = uri.rstrip("/")
        self._cache = cache
        self._local = "://" not in uri or uri.startswith("file://")

    def address(self, kind: str, name: str) -> str:
        return f"{self._uri}/{kind}/{name}"

    def publish(self, folder: Path, kind: str, name: str) -> str:
        """Copy `folder`, which must hold manifest.json, to the store; returns its address. Idempotent."""
        if not (folder / MANIFEST).exists():
            raise ValueError(f"{folder} has no {MANIFEST}")
        address = self.address(kind, name)
        if self._local:
            self._publish_locally(folder, Path(address.removeprefix("file://")))
        else:
            self._publish_remotely(folder, address)
        return address

    def fetch(self, address: str) -> Path:
        """Return the folder at `address` on this machine. Raises DependencyUnavailable if it is not published (yet)."""
        if "://" not in address or address.startswith("file://"):
            path = Path(address.removeprefix("file://"))
            if not (path / MANIFEST).exists():
                raise DependencyUnavailable(f"no artifact at {address}", "Is RATCHET_ARTIFACTS the same everywhere?")
            return path
        return self._fetch_remotely(address)

    def _publish_locally(self, folder: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            return
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:  # Another process published the same content first.
            shutil.rmtree(temporary)
            if not target.exists():
                raise

    def _publish_remotely(self, folder: Path, address: str) -> None:
        filesystem, root = fsspec.core.url_to_fs(address)
        if filesystem.exists(f"{root}/{MANIFEST}"):
            return
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == MANIFEST):
            filesystem.put_file(str(path), f"{root}/{path.relative_to(folder).as_posix()}")

    def _fetch_remotely(self, address: str) -> Path:
        filesystem, root = fsspec.core.url_to_fs(address)
        target = self._cache / address.partition("://")[2]
        if not target.exists():
            if not filesystem.exists(f"{root}/{MANIFEST}"):
                raise DependencyUnavailable(f"no artifact at {address}", "Is RATCHET_ARTIFACTS the same everywhere?")
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=target.parent))
            filesystem.get(f"{root}/", f"{temporary}/", recursive=True)
            temporary.rename(target)
        return target
