"""The spool between real processes: killed owners, a file size limit, and a disk that is really full."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.privacy.encryption import Cipher
from shared.spool import Record, Spool, SpoolOptions, SpoolReader, SpoolUnavailable, Sync, list_slots
from shared.spool.segments import segment_numbers
from tests.conftest import ROOT

CIPHER = Cipher(bytes(32))

APPENDS = """
import sys
from pathlib import Path
from shared.privacy.encryption import Cipher
from shared.spool import Record, Spool, SpoolOptions, Sync
spool = Spool.open(Path(sys.argv[1]), Cipher(bytes(32)), SpoolOptions(sync=Sync(sys.argv[2]), segment_bytes=20_000))
print(spool.slot.name, flush=True)
n = 0
while True:
    spool.append([Record("t", b"", b"%s %d" % (sys.argv[3].encode(), n)), Record("t", b"", b"x" * 500)])
    print(n, flush=True)
    n += 1
"""

FILLS = """
import sys
from pathlib import Path
from shared.privacy.encryption import Cipher
from shared.spool import Record, Spool, SpoolUnavailable, SpoolOptions, SpoolReader, Sync
from shared.spool.segments import segment_numbers
folder = Path(sys.argv[1])
spool = Spool.open(folder / "spool", Cipher(bytes(32)), SpoolOptions(sync=Sync.PROCESS, segment_bytes=100_000))
appended, refused = 0, 0
while refused < 3:
    try:
        spool.append([Record("t", b"", b"%d" % appended + b"x" * 999)])
        appended += 1
    except SpoolUnavailable:
        refused += 1
assert appended > 500, appended
reader, read = SpoolReader(spool.slot, Cipher(bytes(32))), []
while spooled := reader.read(50, 1 << 20):  # The disk stays full, except for what shipping frees.
    read += [int(s.record.value.rstrip(b"x")) for s in spooled]
    reader.advance(spooled[-1].position)
assert read == list(range(appended)), (appended, len(read))
assert len(segment_numbers(spool.slot)) == 1
spool.append([Record("t", b"", b"room")])
assert [s.record.value for s in reader.read(50, 1 << 20)] == [b"room"]
assert (reader.incomplete_bytes, reader.quarantined_segments) == (0, 0)
print("appended", appended)
"""


@contextmanager
def appending(folder: Path, name: str, sync: Sync = Sync.PROCESS) -> Iterator[subprocess.Popen[str]]:
    """A process that appends numbered records and prints each number once it is acknowledged; killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", APPENDS, folder, sync, name], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def acknowledged(child: subprocess.Popen[str]) -> list[str]:
    """Return the numbers that a killed child printed and nobody has read."""
    assert child.stdout is not None
    return child.stdout.read().split("\n")[:-1]  # The last one may be incomplete.


def drain(reader: SpoolReader) -> list[str]:
    read = []
    while spooled := reader.read(100, 1 << 20):
        read += [s.record.value.decode() for s in spooled if not s.record.value.startswith(b"x")]
        reader.advance(spooled[-1].position)
    return read


@pytest.mark.parametrize("sync", Sync)
def test_records_of_a_killed_process_are_read_in_order_and_its_slot_is_adopted(tmp_path: Path, sync: Sync) -> None:
    expected: list[str] = []
    for name in ("a", "b", "c"):
        with appending(tmp_path, name, sync) as child:
            assert child.stdout is not None
            slot, *appended = [child.stdout.readline() for _ in range(50)]
        assert slot == "0\n"
        expected += [f"{name} {n}" for n in range(len(appended) + len(acknowledged(child)))]
    reader = SpoolReader(tmp_path / "0", CIPHER)
    read = drain(reader)
    unacknowledged = set(read) - set(expected)
    assert [value for value in read if value not in unacknowledged] == expected
    assert len(expected) > 100
    assert len(unacknowledged) <= 3  # Written, but killed before it could print the number.
    assert reader.quarantined_segments == 0
    assert segment_numbers(tmp_path / "0") == []


def test_a_reader_in_another_process_follows_a_living_writer_and_loses_nothing(tmp_path: Path) -> None:
    read: list[str] = []
    with appending(tmp_path, "a") as child:
        assert child.stdout is not None
        child.stdout.readline()
        reader = SpoolReader(tmp_path / "0", CIPHER)
        while len(read) < 200:
            spooled = reader.read(37, 1 << 20)
            read += [s.record.value.decode() for s in spooled if not s.record.value.startswith(b"x")]
            if spooled:
                reader.advance(spooled[-1].position)
    read += drain(reader)
    count = len(acknowledged(child))
    assert read[:count] == [f"a {n}" for n in range(count)]
    assert len(read) <= count + 1
    assert (reader.quarantined_segments, segment_numbers(tmp_path / "0")) == (0, [])


def test_concurrent_processes_never_share_a_slot(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", APPENDS, tmp_path, "process", str(n)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    try:
        taken = [child.stdout.readline().strip() for child in children if child.stdout is not None]
    finally:
        for child in children:
            child.kill(), child.wait()
    assert sorted(taken) == ["0", "1", "2", "3"]
    for slot in list_slots(tmp_path):
        owners = {value.split()[0] for value in drain(SpoolReader(slot, CIPHER))}
        assert owners <= {str(taken.index(slot.name))}
    reopened = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.PROCESS))
    assert reopened.slot.name == "0"
    reopened.close()


def test_a_file_at_its_size_limit_takes_no_partial_record(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.PROCESS))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    appended = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(SpoolUnavailable):
            while True:
                spool.append([Record("t", b"", b"%d" % appended + b"x" * 999)])
                appended += 1
        (number,) = segment_numbers(spool.slot)
        assert spool.backlog.bytes < 10_000  # The kernel wrote part of the last frame; it was truncated.
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.append([Record("t", b"", b"%d" % appended)])
    reader = SpoolReader(spool.slot, CIPHER)
    assert [int(s.record.value.rstrip(b"x")) for s in reader.read(100, 1 << 20)] == list(range(appended + 1))
    assert segment_numbers(spool.slot) == [number]
    spool.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> list[str]:
    """Return a command that runs its arguments with a private file system of 1 MB on `tmp_path`."""
    mount = f'mount -t tmpfs -o size=1m spool "{tmp_path}" && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here; the file size limit stands for a full disk (the test above)")
    return command


def test_on_a_full_disk_shipping_makes_room_and_nothing_is_lost(tmp_path: Path, tiny_disk: list[str]) -> None:
    completed = subprocess.run(
        [*tiny_disk, sys.executable, "-c", FILLS, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.startswith("appended")
