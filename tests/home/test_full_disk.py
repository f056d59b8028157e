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
        f"create 'copy' failed: the disk below {home} is full; nothing was changed; free space on that disk (cowfs "
        "pool check --repair gives back what lost changes occupy), then run this again"
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
            "pool is read-only; free space on that disk, then run cowfs pool check --repair, which gives back what the "
            "lost changes occupy"
        )
        with pytest.raises(PoolModeError, match="pool check --repair"):
            opened.snapshot("web", "copy")
    assert run(["--home", str(home), "pool", "check", "--repair"]) == 0
    with cowfs.open_home(home) as opened:
        assert [row.name for row in opened.devices()] == ["base", "before", "web"]
        opened.snapshot("web", "copy")
        assert opened.check().clean


def _lose_a_change(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four mebibytes that reach the data file, and no commit."""

    def write(opened: cowfs.Home, patch: pytest.MonkeyPatch) -> None:
        with opened.device("web") as disk:
            disk.pwrite(4 << 20, b"kept" * 1024)
            disk.flush()
            disk.pwrite(8 << 20, b"lost" * (1 << 20))
            patch.setattr(Metadata, "commit", full)

    with cowfs.open_home(home) as opened, monkeypatch.context() as patch, pytest.raises(PoolIoError):
        write(opened, patch)


def _occupied_bytes(home: Path) -> int:
    return (home / "devicemapper" / "data").stat().st_blocks * 512


def test_what_a_lost_change_occupies_goes_back_to_the_disk(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the home alone fills a disk nothing else could be freed, and to remove a device takes some of the disk."""
    _lose_a_change(home, monkeypatch)
    before = _occupied_bytes(home)
    assert run(["--home", str(home), "pool", "check", "--repair"]) == 0
    assert "4 MiB of lost changes given back to the disk\n" in capsys.readouterr().out
    assert _occupied_bytes(home) == before - (4 << 20)
    with cowfs.open_home(home) as opened, opened.device("web") as disk:
        assert disk.pread(4 << 20, 4096) == b"kept" * 1024
        assert b"lost" not in disk.pread(8 << 20, 4096)
    assert run(["--home", str(home), "pool", "check", "--repair"]) == 0
    assert "given back" not in capsys.readouterr().out


def test_beside_metadata_that_a_repair_replaced_nothing_is_given_back(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may still lead to blocks which the new metadata does not know."""
    _lose_a_change(home, monkeypatch)
    (home / "devicemapper" / "metadata.replaced").touch()
    before = _occupied_bytes(home)
    assert run(["--home", str(home), "pool", "check", "--repair"]) == 0
    assert _occupied_bytes(home) == before


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
