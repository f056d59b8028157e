"""What options mean for a home that is made, and for one that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from cowfs.devices import opening
from cowfs.devices.on_disk.options import HomeOptions, PoolSource
from cowfs.devices.reports import HomeReport
from cowfs.errors import UsageError
from cowfs.layers.options import HomeChanges, changes_to_home, home_options, parse_storage_options
from cowfs.pool import load_backend

MIB, GIB = 1 << 20, 1 << 30
SMALL = HomeOptions(
    data_size_bytes=64 * MIB, metadata_size_bytes=2 * MIB, base_size_bytes=16 * MIB, min_free_percent=0, durable=False
)


def made(*options: str, defaults: HomeOptions | None = None) -> HomeOptions:
    return home_options(parse_storage_options(options), defaults)


def test_the_defaults_are_those_of_the_original() -> None:
    assert made() == HomeOptions(
        data_size_bytes=100 * GIB,
        metadata_size_bytes=2 * GIB,
        block_bytes=64 << 10,
        base_size_bytes=10 * GIB,
        low_water_blocks=32768,
        min_free_percent=10,
    )


def test_other_defaults_where_nothing_is_said() -> None:
    assert made(defaults=SMALL) == SMALL
    assert made("dm.basesize=20M", defaults=SMALL) == structs.replace(SMALL, base_size_bytes=20 * MIB)


def test_every_size() -> None:
    found = made(
        "dm.loopdatasize=300M", "dm.loopmetadatasize=200M", "dm.basesize=300M", "dm.blocksize=128K",
        "dm.min_free_space=5%",
    )  # fmt: skip
    assert found == HomeOptions(
        data_size_bytes=300 * MIB,
        metadata_size_bytes=200 * MIB,
        base_size_bytes=300 * MIB,
        block_bytes=128 << 10,
        min_free_percent=5,
    )


def test_what_is_no_whole_block_is_left_out() -> None:
    found = made("dm.loopdatasize=1000000001", "dm.loopmetadatasize=10000001", "dm.basesize=20000001")
    assert found.data_size_bytes == 1000000001 - 1000000001 % 65536
    assert found.metadata_size_bytes == 10000001 - 10000001 % 4096
    assert found.base_size_bytes == 20000001 - 20000001 % 512


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("dm.blocksize=0", "block size"),
        ("dm.blocksize=65K", "block size"),
        ("dm.blocksize=2G", "block size"),
        ("dm.loopdatasize=1K", "data size"),
        ("dm.loopmetadatasize=1M", "metadata size"),
        ("dm.basesize=0", "base size"),
        ("dm.basesize=4096", "base size"),
    ],
)
def test_sizes_that_cannot_be(option: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"^{text} "):
        made(option)


@pytest.mark.parametrize(
    ("options", "source"),
    [
        ([], PoolSource()),
        (["dm.datadev=/dev/d"], PoolSource(data_device="/dev/d")),
        (["dm.metadatadev=/dev/m"], PoolSource(metadata_device="/dev/m")),
        (["dm.datadev=/dev/d", "dm.metadatadev=/dev/m"], PoolSource("/dev/d", "/dev/m")),
        (["dm.thinpooldev=/dev/mapper/p"], PoolSource(thin_pool="p")),
        (["dm.thinpooldev=p", "dm.datadev=/dev/d"], PoolSource(thin_pool="p")),
        (["dm.directlvm_device=/dev/d"], PoolSource(thin_pool="docker-thinpool")),
    ],
)
def test_where_the_pool_is(options: list[str], source: PoolSource) -> None:
    assert made(*options).source == source


# ---------------------------------------------------------------------------- a home that is there


@pytest.fixture(scope="module")
def status(tmp_path_factory: pytest.TempPathFactory) -> HomeReport:
    home: Path = tmp_path_factory.mktemp("homes") / "home"
    with opening.make_home(home, load_backend("emulated"), SMALL) as devices:
        return devices.reports.status()


def changes(status: HomeReport, *options: str) -> HomeChanges:
    return changes_to_home(parse_storage_options(options), status, "ext4")


def test_nothing_said_nothing_changes(status: HomeReport) -> None:
    assert changes(status) == HomeChanges()


def test_saying_what_is_so_changes_nothing(status: HomeReport) -> None:
    same = ("dm.loopdatasize=64M", "dm.loopmetadatasize=2M", "dm.basesize=16M", "dm.blocksize=64K", "dm.fs=ext4")
    assert changes(status, *same) == HomeChanges()
    assert changes(status, "dm.basesize=16777217") == HomeChanges()


def test_everything_grows(status: HomeReport) -> None:
    found = changes(status, "dm.loopdatasize=74M", "dm.loopmetadatasize=3M", "dm.basesize=26M", "dm.min_free_space=5%")
    assert found == HomeChanges(
        data_size_bytes=74 * MIB, metadata_size_bytes=3 * MIB, base_size_bytes=26 * MIB, min_free_percent=5
    )


def test_pool_files_never_shrink(status: HomeReport) -> None:
    found = changes(status, "dm.loopdatasize=54M", "dm.loopmetadatasize=1M")
    assert found == HomeChanges(
        warnings=(
            "dm.loopdatasize=54 MiB is ignored: the pool has 64 MiB already",
            "dm.loopmetadatasize=1 MiB is ignored: the pool has 2 MiB already",
        )
    )


def test_a_base_device_never_shrinks(status: HomeReport) -> None:
    with pytest.raises(UsageError) as caught:
        changes(status, "dm.basesize=15M")
    assert str(caught.value) == "devmapper: Base device size cannot be smaller than 16.78MB"


def test_what_is_kept_for_life(status: HomeReport) -> None:
    found = changes(status, "dm.blocksize=128K", "dm.fs=xfs")
    assert found == HomeChanges(
        warnings=(
            "dm.blocksize is ignored: the pool's is 64 KiB, for its life",
            "dm.fs=xfs is ignored: the base device has ext4",
        )
    )


@pytest.mark.parametrize(
    ("source", "grows"),
    [
        ("dm.thinpooldev=p", (False, False)),
        ("dm.directlvm_device=/dev/d", (False, False)),
        ("dm.datadev=/dev/d", (False, True)),
        ("dm.metadatadev=/dev/d", (True, False)),
    ],
)
def test_only_files_of_the_home_itself_grow(status: HomeReport, source: str, grows: tuple[bool, bool]) -> None:
    found = changes(status, source, "dm.loopdatasize=74M", "dm.loopmetadatasize=3M")
    assert (found.data_size_bytes is not None, found.metadata_size_bytes is not None) == grows


def test_a_pool_that_cannot_tell_its_size_is_left_alone(status: HomeReport) -> None:
    failed = structs.replace(status, data_total_bytes=0, metadata_total_bytes=0, base_size_bytes=0)
    assert changes(failed, "dm.loopdatasize=74M", "dm.loopmetadatasize=3M", "dm.basesize=1M") == HomeChanges()
