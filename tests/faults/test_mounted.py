"""Faults of a mount, met by programs: every kind on requests, and on the disk under them."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cowfs
from cowfs.errors import MountError, UsageError
from cowfs.faults.plan import FILE_OPERATIONS, Place, PoolModeName
from cowfs.home.maintenance import repair_home
from tests.faults.conftest import Mounted, mounted

pytestmark = pytest.mark.fuse


def number_of(act: Callable[[], object]) -> int:
    """The errno of what is done; 0 when it succeeds."""
    try:
        act()
    except OSError as error:
        return error.errno or -1
    return 0


def append(path: Path, data: bytes = b"x") -> int:
    def act() -> None:
        with open(path, "ab", buffering=0) as file:
            assert file.write(data) == len(data)

    return number_of(act)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def touch(path: Path) -> Path:
    path.write_bytes(b"content")
    return path


def actions(directory: Path) -> dict[str, Callable[[], object]]:
    """For each operation, what asks for it, below an empty directory, with a path that ends in `target`."""
    directory.mkdir()
    target = directory / "target"
    there = {name: directory / name / "target" for name in FILE_OPERATIONS}
    for name, path in there.items():
        path.parent.mkdir()
        if name in ("rmdir", "readdir"):
            path.mkdir()
        elif name not in ("create", "mkdir", "symlink", "link"):
            touch(path)
    os.setxattr(there["removexattr"], "user.x", b"y")
    touch(target)
    return {
        "open": there["open"].open,
        "read": there["read"].read_bytes,
        "write": lambda: there["write"].open("r+b", buffering=0).write(b"x"),
        "truncate": lambda: os.truncate(there["truncate"], 3),
        "fsync": lambda: sync(there["fsync"]),
        "readdir": lambda: os.listdir(there["readdir"]),
        "create": lambda: touch(there["create"]),
        "mkdir": there["mkdir"].mkdir,
        "symlink": lambda: there["symlink"].symlink_to("x"),
        "link": lambda: there["link"].hardlink_to(directory / "open" / "target"),
        "unlink": there["unlink"].unlink,
        "rmdir": there["rmdir"].rmdir,
        "rename": lambda: there["rename"].rename(directory / "elsewhere"),
        "setattr": lambda: there["setattr"].chmod(0o600),
        "setxattr": lambda: os.setxattr(there["setxattr"], "user.x", b"z"),
        "removexattr": lambda: os.removexattr(there["removexattr"], "user.x"),
    }


def test_every_operation_fails_where_it_is_named_and_then_succeeds(mount: Mounted) -> None:
    asked = actions(mount.web / "operations")
    assert asked.keys() == set(FILE_OPERATIONS)
    for operation, act in asked.items():
        with mount.faults.fail(operation, path=f"/operations/{operation}/target", errno="EDQUOT") as fault:
            assert number_of(act) == errno.EDQUOT, operation
        assert fault.hits == fault.seen, operation
        assert operation == "read" or fault.hits == 1, operation  # the kernel asks again for what it read ahead
        assert number_of(act) == 0, operation


def test_the_story_of_a_wal(mount: Mounted) -> None:
    wal = mount.web / "a.wal"
    with mount.faults.fail("write", path="*.wal", errno="EIO", after=3, times=1) as fault:
        assert [append(wal) for _ in range(6)] == [0, 0, 0, errno.EIO, 0, 0]
        assert append(mount.web / "a.db") == 0
        assert (fault.seen, fault.hits) == (6, 1)
    assert wal.read_bytes() == b"xxxxx"
    assert mount.faults.reports() == []


def test_only_one_device_and_the_status_says_so(mount: Mounted) -> None:
    assert mount.home.status().faults == 0
    mount.faults.fail("write", device="oth*")
    mount.faults.fail("mkdir", device="web", name="of web")
    assert mount.home.status().faults == 2
    assert append(mount.web / "one") == 0
    other = mount.root / "other"
    if other.exists():
        assert append(other / "one") == errno.EIO
    assert number_of((mount.web / "new").mkdir) == errno.EIO
    assert [report.rule.name for report in mount.faults.clear("of web")] == ["of web"]
    assert number_of((mount.web / "new").mkdir) == 0


def test_a_file_that_was_open_before_is_known_by_its_path(mount: Mounted) -> None:
    """Names that the kernel learnt before there were faults, and by listing a directory."""
    below = mount.web / "before" / "dir"
    below.mkdir(parents=True)
    touch(below / "a")
    os.link(below / "a", mount.web / "before" / "second")
    with (below / "a").open("ab", buffering=0) as file:
        with mount.faults.fail("write", path="/before/dir/*"), pytest.raises(OSError, match="Input/output"):
            file.write(b"x")
        with mount.faults.fail("write", path="second"), pytest.raises(OSError, match="Input/output"):
            file.write(b"x")
        with mount.faults.fail("write", path="/before/new/*") as fault:
            file.write(b"x")
            below.rename(mount.web / "before" / "new")
            with pytest.raises(OSError, match="Input/output"):
                file.write(b"x")
            (mount.web / "before" / "new" / "a").unlink()
            (mount.web / "before" / "second").unlink()
            assert fault.hits == 1


def test_what_the_kernel_has_cached_does_not_hide_a_fault(mount: Mounted) -> None:
    path = touch(mount.web / "cached")
    assert path.read_bytes() == b"content"
    with path.open("rb", buffering=0) as file:
        with mount.faults.fail("read", path="cached"):
            with pytest.raises(OSError, match="Input/output"):
                file.read()
            assert number_of(path.read_bytes) == errno.EIO
        with mount.faults.flip("read", path="cached", offset_bytes=0, bit=5):
            assert path.read_bytes() == b"Content"
        file.seek(0)
        assert file.read() == b"content"
    with mount.faults.fail("read", on="device"):
        assert number_of(path.read_bytes) == errno.EIO
    assert path.read_bytes() == b"content"


def test_torn_short_and_lost_writes(mount: Mounted) -> None:
    with mount.faults.tear("write", path="torn", keep_bytes=512, times=1):
        assert append(mount.web / "torn", b"x" * 2000) == 0
        assert (mount.web / "torn").stat().st_size == 2000
    assert (mount.web / "torn").read_bytes() == b"x" * 512 + bytes(1488)
    with mount.faults.tear("write", path="torn", keep_sectors=[1], errno="EIO"):
        assert number_of(lambda: (mount.web / "torn").open("r+b", buffering=0).write(b"y" * 1024)) == errno.EIO
    assert (mount.web / "torn").read_bytes() == b"x" * 512 + b"y" * 512 + bytes(976)
    with mount.faults.short(keep_bytes=3, path="short", times=1), (mount.web / "short").open("wb", buffering=0) as file:
        assert file.write(b"abcdef") == 3
        assert file.write(b"def") == 3
    assert (mount.web / "short").read_bytes() == b"abcdef"
    with mount.faults.lose("write", path="lost", times=1):
        assert append(mount.web / "lost", b"x" * 10) == 0
    assert (mount.web / "lost").read_bytes() == bytes(10)
    with mount.faults.flip("write", path="flipped", offset_bytes=2, bit=0):
        assert append(mount.web / "flipped", b"aaaa") == 0
    assert (mount.web / "flipped").read_bytes() == b"aa`a"


def test_a_delay_holds_up_its_own_request_alone(mount: Mounted) -> None:
    path = touch(mount.web / "slow")
    with mount.faults.delay("fsync", seconds=0.3):
        waiting = subprocess.Popen(["sync", path])
        begin = time.monotonic()
        assert append(mount.web / "quick") == 0
        assert waiting.poll() is None or time.monotonic() - begin > 0.3
        assert waiting.wait() == 0
        assert time.monotonic() - begin >= 0.25


def test_a_delay_ends_with_its_rule(mount: Mounted) -> None:
    path = touch(mount.web / "slow")
    with mount.faults.delay("fsync", seconds=3000) as fault:
        waiting = subprocess.Popen(["sync", path])
        while not fault.hits:
            assert waiting.poll() is None
    assert waiting.wait(30) == 0


def test_a_delay_does_not_keep_a_mount_from_ending(tmp_path: Path, needs_fuse: None) -> None:
    with mounted(tmp_path, "tree") as mount:
        fault = mount.faults.delay("write", seconds=3000)
        waiting = subprocess.Popen(["sh", "-c", 'echo x > "$0/x"', mount.web], stderr=subprocess.DEVNULL)
        while not fault.hits:
            assert waiting.poll() is None
    waiting.wait(30)


def test_a_lost_fsync_succeeds(mount: Mounted) -> None:
    path = touch(mount.web / "unsynced")
    with mount.faults.fail("flush", on="device"):
        with mount.faults.lose("fsync", path="unsynced") as fault:
            sync(path)
            assert fault.hits == 1
        assert number_of(lambda: sync(path)) == errno.EIO
    sync(path)


@pytest.mark.parametrize("on", ["device", "data"])
def test_errors_of_the_disks_below(mount: Mounted, on: Place) -> None:
    """A write that fails on the disk fails in the program; nothing else is lost, and the volume goes on."""
    path = mount.web / f"on-{on}"
    with mount.faults.fail("write", on=on) as fault:
        assert append(path, b"x" * 100_000) == errno.EIO
        assert fault.hits
    assert append(path, b"y" * 10) == 0
    sync(path)
    assert path.read_bytes()[-10:] == b"y" * 10


def test_a_full_pool_and_a_full_disk(mount: Mounted) -> None:
    with mount.faults.no_space("write", on="device"):
        assert append(mount.web / "full", b"x" * 4096) == errno.ENOSPC
    with mount.faults.no_space("create"):
        assert append(mount.web / "never", b"x") == errno.ENOSPC
    with mount.faults.fail("write", on="data", errno="ENOSPC"):
        assert append(mount.web / "full", b"x" * 200_000) == errno.ENOSPC
    assert append(mount.web / "full", b"x" * 4096) == 0


def test_a_wrong_fault_is_one_line_and_changes_nothing(mount: Mounted) -> None:
    with pytest.raises(UsageError, match=r"the faults, rule 1 \('a'\), field 'effect.errno': 'EFOO' is not an errno"):
        mount.faults.fail("write", errno="EFOO", name="a")
    mount.faults.fail("mkdir", name="a")
    with pytest.raises(UsageError, match="already a rule 'a'"):
        mount.faults.fail("mkdir", name="a")
    with pytest.raises(UsageError, match="no rule 'b'; in force: 'a'"):
        mount.faults.clear("b")
    assert len(mount.faults.reports()) == 1


def test_a_disk_that_is_shown_as_a_file(tmp_path: Path, needs_fuse: None) -> None:
    with mounted(tmp_path, "raw") as mount:
        with (
            mount.faults.fail("write", on="device", range_bytes=(4096, 8192)),
            mount.web.open("r+b", buffering=0) as disk,
        ):
            assert disk.write(b"x" * 4096) == 4096
            assert number_of(lambda: disk.write(b"x" * 4096)) == errno.EIO
        with (
            mount.faults.fail("fsync", path="/web"),
            mount.web.open("r+b") as disk,
            pytest.raises(OSError, match="Input"),
        ):
            os.fsync(disk.fileno())
        with mount.faults.flip(device_offset=1, bit=0):
            assert mount.web.open("rb").read(3) == b"xyx"
        with mount.web.open("r+b", buffering=0) as disk:
            disk.seek(4096)
            assert disk.write(b"y") == 1
            os.fsync(disk.fileno())
        assert mount.web.open("rb").read(4097)[-2:] == b"xy"


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        ("read_only", "read_only"),
        ("needs_check", "read_only"),
        ("out_of_metadata_space", "out_of_metadata_space"),
        ("failed", "fail"),
    ],
)
def test_the_pool_changes_its_mode(tmp_path: Path, needs_fuse: None, mode: PoolModeName, shown: str) -> None:
    """What was not committed by then is lost, and the end of the mount says so."""

    def story() -> None:
        with mounted(tmp_path, "tree") as mount:
            touch(mount.web / "before")
            sync(mount.web / "before")
            mount.faults.pool_mode(mode, "write", on="device")
            assert append(mount.web / "after", b"x" * 200_000) == errno.EIO
            status = mount.home.status()
            assert (status.mode, status.needs_check) == (shown, mode == "needs_check")
            mount.faults.clear()

    with pytest.raises(MountError, match="ended with status 4"):
        story()
    if mode == "needs_check":
        assert repair_home(tmp_path / "home").repaired
    with cowfs.open_home(tmp_path / "home") as home, home.mount("web") as web:
        assert home.status().mode == "write"
        assert (web / "before").read_bytes() == b"content"


def test_a_commit_that_fails(tmp_path: Path, needs_fuse: None) -> None:
    def story() -> None:
        with mounted(tmp_path, "tree") as mount:
            touch(mount.web / "a")
            with mount.faults.fail(on="commit", times=1) as fault:
                assert number_of(lambda: sync(mount.web / "a")) == errno.EIO
                assert fault.hits == 1
            status = mount.home.status()
            assert (status.mode, status.needs_check) == ("read_only", True)

    with pytest.raises(MountError, match="ended with status"):
        story()


def test_the_server_crashes(tmp_path: Path, needs_fuse: None) -> None:
    def story() -> None:
        with mounted(tmp_path, "tree") as mount:
            touch(mount.web / "a")
            sync(mount.web / "a")
            mount.faults.crash("rename", nth=2)
            (mount.web / "a").rename(mount.web / "b")
            sync(mount.web)
            assert number_of(lambda: (mount.web / "b").rename(mount.web / "c")) in (errno.ECONNABORTED, errno.ENOTCONN)

    with pytest.raises(MountError, match="was killed by signal 9"):
        story()
    with cowfs.open_home(tmp_path / "home") as home, home.mount("web") as web:
        assert home.status().faults == 0
        assert (web / "b").read_bytes() == b"content"


def test_a_plan_is_in_force_from_the_beginning(tmp_path: Path, needs_fuse: None) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('[[rules]]\noperations = ["create"]\neffect = { kind = "error", errno = "EMFILE" }\n')
    with mounted(tmp_path, "tree"):
        pass
    with cowfs.open_home(tmp_path / "home") as home:
        with home.mount("web", faults=plan) as web:
            assert append(web / "new") == errno.EMFILE
            (report,) = home.faults.clear()
            assert report.hits == 1
            assert append(web / "new") == 0
        plan.write_text("rules = 3")
        with pytest.raises(UsageError, match=r"plan.toml: there are no rules"), home.mount("web", faults=plan):
            pass
        assert home.status().views == []
