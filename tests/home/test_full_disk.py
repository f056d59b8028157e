"""A full disk below the home: what was asked is named, nothing is changed, and with space again everything works."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

import cowfs
from cowfs.cli.app import run
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.errors import HomeError, PoolIoError, PoolModeError
from cowfs.home.requests.devices import Create, Remove
from cowfs.home.requests.space import Trim
from cowfs.testing.judges import require_clean_file
from cowfs.thinmeta.metadata import Metadata
from cowfs_emulated.pool import EmulatedPool
from tests.home.conftest import serving


def full(*_arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def pool_full(*_arguments: object) -> None:
    raise PoolIoError("write of 1024 bytes at 0x40c00: No space left on device", errno=errno.ENOSPC)


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize(
    ("broken", "failure"),
    [((HomeFiles, "_write_new_files"), full), ((EmulatedPool, "create_snap"), pool_full)],
    ids=["record", "pool"],
)
def test_what_was_asked_is_named(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: tuple[type, str],
    failure: Callable[..., None],
    served: bool,
) -> None:
    def refused(opened: cowfs.Home) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(*broken, failure)
            with pytest.raises(HomeError) as caught:
                opened.snapshot("web", "copy")
        assert caught.value.errno == errno.ENOSPC
        assert [row.name for row in opened.devices()] == ["base", "web"]
        opened.snapshot("web", "copy")
        return str(caught.value)

    if served:
        with serving(home), cowfs.open_home(home) as opened:
            said = refused(opened)
    else:
        with cowfs.open_home(home) as opened:
            said = refused(opened)
    assert said == (
        f"create 'copy' failed: the disk below {home} is full; nothing was changed; free space on that disk, then run "
        "this again"
    )
    require_clean_file(home / "devicemapper" / "metadata")
    with cowfs.open_home(home) as opened:
        assert [row.name for row in opened.devices()] == ["base", "copy", "web"]


def test_a_commit_that_the_disk_has_no_room_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool falls back to what it had committed; the command that the message names makes it writable again."""
    with cowfs.open_home(home) as opened:
        opened.snapshot("web", "before")
        with monkeypatch.context() as patch:
            patch.setattr(Metadata, "commit", full)
            with pytest.raises(HomeError) as caught:
                opened.snapshot("web", "copy")
        assert caught.value.errno == errno.ENOSPC
        assert str(caught.value) == (
            f"create 'copy' failed: the disk below {home} is full; changes since the last commit are lost, and the "
            "pool is read-only; free space on that disk, then run cowfs pool check --repair"
        )
        with pytest.raises(PoolModeError, match="pool check --repair"):
            opened.snapshot("web", "copy")
    assert run(["--home", str(home), "pool", "check", "--repair"]) == 0
    with cowfs.open_home(home) as opened:
        assert [row.name for row in opened.devices()] == ["base", "before", "web"]
        opened.snapshot("web", "copy")
        assert opened.check().clean


def test_what_may_be_done_in_part_does_not_promise_more() -> None:
    assert Create("a").is_whole
    assert Remove("a").is_whole
    assert not Trim("a").is_whole


def test_another_error_of_the_disk_is_passed_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise PoolIoError("the disk is gone", errno=errno.EIO)

    with cowfs.open_home(home) as opened, monkeypatch.context() as patch:
        patch.setattr(EmulatedPool, "create_snap", broken)
        with pytest.raises(PoolIoError, match="the disk is gone"):
            opened.snapshot("web", "copy")
