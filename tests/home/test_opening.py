"""A home is made and opened in one place: all that a description says counts, from every caller."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import cowfs
from cowfs.cli.app import run
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.errors import CowfsError, HomeError, NotAHome, UsageError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec, Make
from cowfs.layers import direct_lvm
from cowfs.layers.lvm_config import POOL_NAME, LvmConfig
from tests.home.conftest import SMALL

SIZES = ("dm.loopdatasize=512M", "dm.loopmetadatasize=8M", "dm.basesize=32M")


def test_making_refuses_an_unknown_storage_option(tmp_path: Path) -> None:
    path = tmp_path / "home"
    with pytest.raises(UsageError, match=r"Unknown option dm\.nonsense"):
        cowfs.open_home(path, create=True, options=SMALL, storage_options=["dm.nonsense=1"])
    assert not path.exists()


@pytest.mark.parametrize("options", [{"dm.basesize": "32M"}, "dm.basesize=32M"])
def test_storage_options_are_a_list(tmp_path: Path, options: Any) -> None:
    with pytest.raises(UsageError, match=r"storage_options is a (dict|str); it must be a list of 'KEY=VALUE'"):
        cowfs.open_home(tmp_path / "home", create=True, options=SMALL, storage_options=options)
    assert not (tmp_path / "home").exists()


def test_making_uses_the_storage_options_first(tmp_path: Path) -> None:
    path = tmp_path / "home"
    for _made_then_opened in range(2):
        with cowfs.open_home(path, create=True, options=SMALL, storage_options=SIZES, durable=False) as home:
            report = home.status()
            assert report.data_total_bytes == 512 << 20
            assert report.metadata_total_bytes == 8 << 20
            assert report.base_size_bytes == 32 << 20


@pytest.mark.parametrize("words", [(), ("dm.min_free_space=5%",)])
@pytest.mark.parametrize("durable", [True, False])
def test_durable_counts_with_and_without_storage_options(home: Path, durable: bool, words: tuple[str, ...]) -> None:
    with open_here(HomeSpec(home, durable=durable, storage_options=words)) as opened:
        assert opened.devices._files.durable is durable


@pytest.mark.parametrize("words", [(), ("dm.min_free_space=5%",)])
def test_read_only_counts_with_and_without_storage_options(home: Path, words: tuple[str, ...]) -> None:
    with open_here(HomeSpec(home, read_only=True, storage_options=words)) as opened:
        assert opened.devices.read_only


def test_when_a_home_is_made(home: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(NotAHome):
        open_here(HomeSpec(absent))
    with pytest.raises(HomeError, match="a home already") as caught:
        open_here(HomeSpec(home, make=Make.ALWAYS, options=SMALL))
    assert caught.value.errno == errno.EEXIST
    with open_here(HomeSpec(home, make=Make.WHERE_ABSENT, options=SMALL)) as opened:
        assert "web" in opened.devices
    with open_here(HomeSpec(absent, make=Make.WHERE_ABSENT, options=SMALL, durable=False)) as opened:
        assert [record.name for record in opened.devices.records()] == ["base"]


# --- a pool that LVM makes


def by_api(path: Path, word: str) -> None:
    cowfs.open_home(path, create=True, storage_options=[word])


def by_command(path: Path, word: str) -> None:
    run(["--home", str(path), "--storage-opt", word, "init"])


@pytest.mark.parametrize("make", [by_api, by_command])
def test_making_prepares_the_pool_on_the_disk_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, str], None]
) -> None:
    prepared: list[tuple[str, LvmConfig, bool]] = []

    def prepare(files: HomeFiles, config: LvmConfig, *, force: bool = False) -> str:
        prepared.append((files.home, config, force))
        return POOL_NAME

    monkeypatch.setattr(direct_lvm, "prepare_pool", prepare)
    path = tmp_path / "home"
    with suppress(CowfsError):  # this backend uses no pool of the kernel
        make(path, "dm.directlvm_device=/dev/sdx")
    assert prepared == [(str(path), LvmConfig(device="/dev/sdx"), False)]


def test_no_disk_is_taken_where_no_home_can_be_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*_: object, **__: object) -> OpenHome:
        raise AssertionError("the disk would have been taken")

    monkeypatch.setattr(direct_lvm, "prepare_pool", prepare)
    with pytest.raises(HomeError, match="a home already"):
        open_here(HomeSpec(home, storage_options=("dm.directlvm_device=/dev/sdx",), make=Make.ALWAYS))
