"""The spool between real processes: owners that are killed, files that may not grow, disks that are really full."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.privacy.encryption import Cipher
from shared.spool import Record, Spool, SpoolFull, SpoolOptions, SpoolReader, Sync, list_slots
from shared.spool.segments import segment_numbers

ROOT = Path(__file__).parents[3]
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
from shared.spool import Record, Spool, SpoolFull, SpoolOptions, SpoolReader, Sync
from shared.spool.segments import segment_numbers
folder = Path(sys.argv[1])
spool = Spool.open(folder / "spool", Cipher(bytes(32)), SpoolOptions(sync=Sync.PROCESS, segment_bytes=100_000))
kept, refused = 0, 0
while refused < 3:
    try:
        spool.append([Record("t", b"", b"%d" % kept + b"x" * 999)])
        kept += 1
    except SpoolFull:
        refused += 1
assert kept > 500, kept
reader, read = SpoolReader(spool.slot, Cipher(bytes(32))), []
while got := reader.read(50, 1 << 20):  # The disk stays full but for what shipping frees.
    read += [int(s.record.value.rstrip(b"x")) for s in got]
    reader.advance(got[-1].position)
assert read == list(range(kept)), (kept, len(read))
assert len(segment_numbers(spool.slot)) == 1
spool.append([Record("t", b"", b"room")])
assert [s.record.value for s in reader.read(50, 1 << 20)] == [b"room"]
assert (reader.incomplete_bytes, reader.quarantined_segments) == (0, 0)
print("kept", kept)
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


def acknowledged(child: subprocess.Popen[str]) -> tuple[str, int]:
    """The slot of a killed child and how many of its appends were acknowledged."""
    assert child.stdout is not None
    lines = child.stdout.read().split("\n")[:-1]  # The last one may be cut.
    return lines[0], len(lines) - 1


def drain(reader: SpoolReader) -> list[str]:
    read = []
    while got := reader.read(100, 1 << 20):
        read += [s.record.value.decode() for s in got if not s.record.value.startswith(b"x")]
        reader.advance(got[-1].position)
    return read


@pytest.mark.parametrize("sync", Sync)
def test_what_a_killed_process_acknowledged_is_read_in_order_and_its_slot_is_adopted(
    tmp_path: Path, sync: Sync
) -> None:
    told: list[str] = []
    for name, seconds in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
        with appending(tmp_path, name, sync) as child:
            assert child.stdout is not None
            slot = child.stdout.readline()
            time.sleep(seconds)
        _, more = acknowledged(child)
        assert slot == "0\n"
        told += [f"{name} {n}" for n in range(more + 1)]  # The first line of `more` was read as the slot's.
    reader = SpoolReader(tmp_path / "0", CIPHER)
    read, known = drain(reader), set(told)
    beyond = [value for value in read if value not in known]
    assert [value for value in read if value in known] == told
    assert len(told) > 100
    assert len(beyond) <= 3  # Written, but killed before it could say so.
    assert reader.quarantined_segments == 0
    assert segment_numbers(tmp_path / "0") == []


def test_a_reader_in_another_process_keeps_up_with_a_living_writer_and_loses_nothing(tmp_path: Path) -> None:
    read: list[str] = []
    with appending(tmp_path, "a") as child:
        assert child.stdout is not None
        child.stdout.readline()
        reader = SpoolReader(tmp_path / "0", CIPHER)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            got = reader.read(37, 1 << 20)
            read += [s.record.value.decode() for s in got if not s.record.value.startswith(b"x")]
            if got:
                reader.advance(got[-1].position)
    while_living = len(read)
    read += drain(reader)
    _, more = acknowledged(child)
    assert while_living > 100
    assert read[: more + 1] == [f"a {n}" for n in range(more + 1)]
    assert len(read) <= more + 2
    assert (reader.quarantined_segments, segment_numbers(tmp_path / "0")) == (0, [])


def test_processes_that_live_at_once_never_have_the_same_slot(tmp_path: Path) -> None:
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
    again = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.PROCESS))
    assert again.slot.name == "0"
    again.close()


def test_a_file_that_may_not_grow_takes_no_half_record(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.PROCESS))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(SpoolFull):
            while True:
                spool.append([Record("t", b"", b"%d" % kept + b"x" * 999)])
                kept += 1
        (number,) = segment_numbers(spool.slot)
        assert spool.backlog.bytes < 10_000  # The kernel wrote a part of the last one; it was cut away again.
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.append([Record("t", b"", b"%d" % kept)])
    reader = SpoolReader(spool.slot, CIPHER)
    assert [int(s.record.value.rstrip(b"x")) for s in reader.read(100, 1 << 20)] == list(range(kept + 1))
    assert segment_numbers(spool.slot) == [number]
    spool.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> list[str]:
    """A command that runs its arguments with a file system of 1 MB of its own on `tmp_path`."""
    mount = f'mount -t tmpfs -o size=1m spool "{tmp_path}" && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount is allowed here; a file that may not grow stands for the full disk (the test above)")
    return command


def test_on_a_disk_that_is_really_full_shipping_makes_room_and_nothing_is_lost(
    tmp_path: Path, tiny_disk: list[str]
) -> None:
    done = subprocess.run(
        [*tiny_disk, sys.executable, "-c", FILLS, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept")
