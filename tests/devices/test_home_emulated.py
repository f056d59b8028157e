"""The device set over the emulated pool: kills by the system call, figures, many devices, damage, a full disk."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.records import DeviceRecord
from cowfs.errors import CowfsError, HomeError, NotAHome
from cowfs.pool import load_backend
from cowfs.testing.judges import require_clean_pool
from tests.conftest import REPOSITORY
from tests.devices.home_fakes import MIB, SMALL, assert_whole, make_home, names, open_home

BLOCK = 64 << 10
KILLED = 137
BACKEND = load_backend("emulated")
# What changes anything outside of the process, by whatever part of it.
CALLS = (
    "write",
    "pwrite",
    "pwritev",
    "fsync",
    "fdatasync",
    "rename",
    "unlink",
    "mkdir",
    "ftruncate",
    "copy_file_range",
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    with make_home(home, BACKEND) as devices:
        devices.create("a")
        devices.create("b", parent="a")
        write(devices, "a", 0, b"flushed before")
        write(devices, "b", BLOCK, b"flushed before, too")
    return home


def write(devices: DeviceSet, name: str, offset: int, data: bytes) -> None:
    thin = devices.active.activate(name)
    thin.pwrite(offset, data)
    thin.flush()
    devices.active.deactivate(name)


def contents(home: Path) -> dict[str, bytes]:
    """All bytes of each device, after every judge was asked."""
    with open_home(home, BACKEND) as devices:
        assert_whole(devices)
        assert devices.problems == ()
        require_clean_pool(devices.pool)
        found = {}
        for name in names(devices):
            thin = devices.active.activate(name, read_only=True)
            found[name] = thin.pread(0, thin.size_bytes)
            devices.active.deactivate(name)
        return found


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that ends without a word at its n-th changing system call; whether it came to that."""
    pid = os.fork()
    if pid == 0:
        try:
            _die_at(step)
            work()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


def _die_at(step: int) -> None:
    left = [step]

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                if call is REAL_PWRITE:  # torn
                    call(arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2], arguments[2])
                os._exit(KILLED)
            left[0] -= 1
            return call(*arguments, **options)

        return wrapped

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))
    real_open = os.open

    def dying_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        opener = dying(real_open) if flags & os.O_CREAT else real_open
        return int(opener(path, flags, *arguments, **options))

    os.open = dying_open


REAL_PWRITE = os.pwrite


def create(devices: DeviceSet) -> None:
    devices.create("new", parent="a")


def snapshot_while_written(devices: DeviceSet) -> None:
    thin = devices.active.activate("a")
    thin.pwrite(2 * BLOCK, b"seen by both")
    devices.create("new", parent="a")
    thin.pwrite(2 * BLOCK, b"seen by one!")
    thin.flush()


def remove(devices: DeviceSet) -> None:
    devices.remove("b")


def create_many(devices: DeviceSet) -> None:
    devices.create_many(["new", "new 2"], parent="a")


@pytest.mark.parametrize("change", [create, snapshot_while_written, remove, create_many])
def test_a_process_killed_at_any_system_call_leaves_a_whole_home(
    home: Path, tmp_path: Path, change: Callable[[DeviceSet], None]
) -> None:
    saved = tmp_path / "saved"
    shutil.copytree(home, saved)
    before = contents(home)

    def work() -> None:
        with open_home(home, BACKEND, durable=True) as devices:
            change(devices)

    work()
    after = contents(home)
    points, outcomes = 0, set()
    while True:
        shutil.rmtree(home)
        shutil.copytree(saved, home)
        if not killed_at(points, work):
            break
        points += 1
        found = contents(home)
        outcomes.add(tuple(sorted(found)))
        for name in set(found) - {"new", "new 2"}:
            assert found[name] in (before[name], after.get(name), _with_first_write(before[name])), (points, name)
        if "new" in found:
            assert found["new"] == after["new"]
        with open_home(home, BACKEND) as devices:
            devices.create("next", parent="a")
            assert_whole(devices)
            require_clean_pool(devices.pool)
    assert outcomes == {tuple(sorted(before)), tuple(sorted(after))}
    assert points > 15
    print(f"{change.__name__}: killed at {points} system calls")


def _with_first_write(data: bytes) -> bytes:
    return data[: 2 * BLOCK] + b"seen by both" + data[2 * BLOCK + 12 :]


def test_a_process_killed_while_making_a_home_lets_the_next_make_it(tmp_path: Path) -> None:
    points, finished = 0, 0
    while True:
        home = tmp_path / f"home{points}"
        if not killed_at(points, lambda home=home: make_home(home, BACKEND).close()):  # type: ignore[misc]
            break
        points += 1
        try:
            open_home(home, BACKEND).close()
            finished += 1
        except NotAHome:
            make_home(home, BACKEND, replace(SMALL, durable=False)).close()
        found = contents(home)
        assert list(found) == ["base"]
        assert found["base"].startswith(b"11111111-2222")
        shutil.rmtree(home)
    assert finished
    assert points > 40
    print(f"init: killed at {points} system calls, {finished} times after its end")


# --- truncated pool files


@pytest.mark.parametrize(("name", "size"), [("metadata", 2 * MIB), ("data", 4 * MIB)])
def test_a_truncated_pool_file_is_refused_and_works_again_when_restored(home: Path, name: str, size: int) -> None:
    path = home / "devicemapper" / name
    good = path.read_bytes()
    os.truncate(path, size - 4096)
    with pytest.raises(HomeError, match=r"so 4096 bytes \(4 KiB\) are missing; restore it from a backup"):
        open_home(home, BACKEND)
    path.write_bytes(good)
    assert sorted(contents(home)) == ["a", "b", "base"]


# --- a damaged transaction file


def test_the_thin_of_a_damaged_transaction_is_found_by_its_age(home: Path) -> None:
    with open_home(home, BACKEND) as devices:
        origin = devices.record("a").device_id
        devices.pool.create_snap(20, origin)
        devices.create("later")  # makes thin 20 an old one
        devices.pool.create_snap(21, origin)
    (home / "metadata/transaction-metadata").write_text("?")
    with open_home(home, BACKEND) as devices:
        assert devices.reports.status().orphan_thin_ids == [20]
        require_clean_pool(devices.pool)


@pytest.mark.parametrize("reason", ["it holds data", "two of them", "a record is damaged"])
def test_what_may_be_another_programs_thin_is_kept(home: Path, reason: str) -> None:
    with open_home(home, BACKEND) as devices:
        origin = devices.record("a").device_id
        devices.pool.create_snap(21, origin)
        if reason == "it holds data":
            thin = devices.pool.activate("other", 21, MIB // 512)
            thin.pwrite(0, b"precious")
            thin.flush()
        elif reason == "two of them":
            devices.pool.create_snap(22, origin)
        else:
            (home / "metadata/damaged").write_text("?")
    (home / "metadata/transaction-metadata").write_text("?")
    with open_home(home, BACKEND) as devices:
        assert 21 in devices.reports.status().orphan_thin_ids
        assert devices.create("next").device_id not in devices.reports.status().orphan_thin_ids


# --- figures


def test_figures_of_a_device_that_was_snapshotted(home: Path) -> None:
    with open_home(home, BACKEND) as devices:
        figures = devices.reports.inspect("a")
        assert (figures.mapped_bytes, figures.highest_mapped_byte) == (BLOCK, BLOCK - 1)
        assert figures.exclusive_bytes == BLOCK
        assert devices.reports.inspect("b").highest_mapped_byte == 2 * BLOCK - 1
        assert (figures.creation_time, figures.snapshotted_time, figures.created_transaction_id) == (1, 2, 1)
        empty = devices.create("empty", parent="a")
        assert devices.reports.inspect(empty.name).exclusive_bytes == 0
        devices.pool.reserve_metadata_snap()
        assert devices.reports.inspect("a").mapped_bytes == BLOCK


def test_status_adds_up(home: Path) -> None:
    with open_home(home, BACKEND) as devices:
        status = devices.reports.status()
        assert status.devices == 2
        assert status.data_total_bytes == 4 * MIB
        assert status.data_used_bytes == 3 * BLOCK
        assert status.metadata_total_bytes == 2 * MIB
        assert status.base_uuid.startswith("11111111")
        assert status.mode == "write"
        assert status.host_free_bytes > 0
        assert status.data_file_allocated_bytes < status.data_total_bytes


# --- many devices


def test_a_home_of_two_thousand_devices_opens_and_lists_at_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    options = replace(SMALL, metadata_size_bytes=32 * MIB, durable=False)
    with make_home(home, BACKEND, options) as devices:
        for number in range(2000):
            devices.create(f"device-{number:04}", parent=f"device-{number - 1:04}" if number else None)
    gc.collect()
    begin = time.process_time()
    devices = open_home(home, BACKEND)
    opened = time.process_time() - begin
    begin = time.process_time()
    records = devices.records()
    listed = time.process_time() - begin
    assert len(records) == 2001
    assert records[3] == DeviceRecord("device-0002", 4, MIB, 4, parent="device-0001", is_layer=False)
    devices.close()
    print(f"2000 devices: opened in {opened * 1000:.0f} ms, listed in {listed * 1000:.0f} ms of processor time")
    assert opened < 0.2
    assert listed < 0.1


# --- damage


def test_no_bit_of_any_small_file_can_break_the_opening(home: Path) -> None:
    """A flipped bit gives a home, perhaps with a device less, or one clear line; never anything else."""
    opened = refused = 0
    lines = set()
    for path in sorted([*home.glob("metadata/*"), home / "cowfs.json", home / "cowfs.parents"]):
        good = path.read_bytes()
        everything = {file: file.read_bytes() for file in home.glob("metadata/*")}
        for bit in range(0, len(good) * 8, 7):
            changed = bytearray(good)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            try:
                with open_home(home, BACKEND) as devices:
                    devices.records()
                opened += 1
            except CowfsError as error:
                lines.add(str(error).count("\n") + 1)
                refused += 1
            path.write_bytes(good)
            for file, content in everything.items():
                if not file.exists() or file.read_bytes() != content:
                    file.write_bytes(content)
            for stray in set(home.glob("metadata/*")) - set(everything):
                stray.unlink()
    assert opened > refused > 0
    assert lines == {1}
    print(f"{opened} opened, {refused} refused")
    shutil.rmtree(home / "cowfs.damaged")


# --- a full disk

FULL_DISK = """
import errno, json, os, sys
from pathlib import Path
from msgspec.structs import replace
sys.path.insert(0, sys.argv[2])
from tests.conftest import REPOSITORY
from tests.devices.home_fakes import *
from cowfs.errors import CowfsError
from cowfs.pool import load_backend
from cowfs.testing.judges import require_clean_pool

disk = Path(sys.argv[1])
backend = load_backend("emulated")
home = disk / "home"
devices = make_home(home, backend, replace(SMALL, data_size_bytes=256 * MIB, base_size_bytes=128 * MIB))
devices.create("a")
thin = devices.active.activate("a")
thin.pwrite(0, b"flushed")
thin.flush()
errors = []
if sys.argv[3] == "data":
    try:
        for block in range(1, 2048):
            thin.pwrite(block * 65536, b"x" * 65536)
        thin.flush()
    except OSError as error:
        errors.append(error.errno)
else:
    (disk / "filler").write_bytes(b"")
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            errors.append(error.errno)
for number in range(50):
    try:
        devices.create(f"n{number}", parent="a")
    except CowfsError as error:
        assert "\\n" not in str(error), error
        errors.append(error.errno)
try:
    devices.close()
except OSError as error:
    errors.append(error.errno)
os.system(f"mount --options-source=disable -o remount,size=400m none {disk}")
with open_home(home, backend) as devices:
    assert_whole(devices)
    require_clean_pool(devices.pool)
    thin = devices.active.activate("a", read_only=True)
    assert thin.pread(0, 7) == b"flushed"
    made = devices.create("after") if devices.reports.status().mode == "write" else None
    assert_whole(devices)
print(json.dumps({"errors": errors, "after": made is not None}))
"""


def in_own_namespace(command: str) -> str:
    """Run a shell command as root of a user namespace, where it may mount; its standard output."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs user namespaces; run: sudo sysctl kernel.unprivileged_userns_clone=1")
    result = subprocess.run([*unshare, "sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("what", ["data", "files"])
def test_a_full_disk_loses_nothing_that_was_flushed(tmp_path: Path, what: str) -> None:
    disk, script = tmp_path / "disk", tmp_path / "script.py"
    disk.mkdir()
    script.write_text(FULL_DISK)
    answer = json.loads(
        in_own_namespace(
            f"mount -t tmpfs -o size=12m none {disk} && exec {sys.executable} {script} {disk} {REPOSITORY} {what}"
        )
    )
    assert errno.ENOSPC in answer["errors"]
    print(answer)


READ_ONLY_MEDIUM = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.conftest import REPOSITORY
from tests.devices.home_fakes import *
from cowfs.pool import load_backend
try:
    open_home(sys.argv[1], load_backend("emulated"))
except OSError as error:
    print(error)
with open_home(sys.argv[1], load_backend("emulated"), read_only=True) as devices:
    print(names(devices), devices.active.activate("a").pread(0, 14), devices.reports.inspect("a").mapped_bytes)
"""


def test_a_home_on_a_read_only_medium_can_be_read(home: Path, tmp_path: Path) -> None:
    medium, script = tmp_path / "medium", tmp_path / "script.py"
    medium.mkdir()
    script.write_text(READ_ONLY_MEDIUM)
    output = in_own_namespace(
        f"mount --bind {home} {medium} && mount -o remount,bind,ro {medium} && "
        f"exec {sys.executable} {script} {medium} {REPOSITORY}"
    )
    refused, shown = output.splitlines()
    assert refused.endswith("cowfs.lock: Read-only file system; it can only be opened for reading")
    assert shown == f"['a', 'b', 'base'] b'flushed before' {BLOCK}"
