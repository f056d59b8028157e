"""Pools outside a home's own files: which devices are taken, which are refused, and that the home finds them again."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from cowfs.blockdev import BlockDevice, FileDevice
from cowfs.devices import opening
from cowfs.devices.base.base_ext4 import Ext4
from cowfs.devices.injected import Injected
from cowfs.devices.on_disk.options import HomeOptions, PoolSource
from cowfs.errors import HomeBusy, HomeError, MissingRequirement, UsageError
from cowfs.home.maintenance import check_home, repair_home, restore_home
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.session import metadata_of
from cowfs.pool import PoolTable, load_backend
from cowfs.thinmeta.xml import dump
from cowfs.units import METADATA_BLOCK_BYTES, Sectors
from tests.kit import damage

MIB = 1 << 20
OPTIONS = HomeOptions(
    data_size_bytes=64 * MIB, metadata_size_bytes=4 * MIB, base_size_bytes=16 * MIB, min_free_percent=0, durable=False
)
BACKEND = load_backend("emulated")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path: Path) -> PoolSource:
    """A data device of 48 MiB and a bit, and a metadata device of 8 MiB."""
    for name, size in (("data", 48 * MIB + 4608), ("metadata", 8 * MIB + 512)):
        with (tmp_path / name).open("xb") as file:
            file.truncate(size)
    return PoolSource(str(tmp_path / "data"), str(tmp_path / "metadata"))


def init(home: Path, source: PoolSource, **changes: object) -> None:
    options = replace(OPTIONS, source=source, **changes)
    with opening.make_home(home, BACKEND, options) as devices:
        devices.create("web")


def refusal(home: Path, source: PoolSource, number: int, **changes: object) -> str:
    """The message of a refusal, after which nothing was made and nothing changed on the devices."""
    paths = [path for path in (source.data_device, source.metadata_device) if os.path.isfile(path)]
    before = [Path(path).read_bytes() for path in paths]
    with pytest.raises(HomeError) as caught:
        init(home, source, **changes)
    assert caught.value.errno == number
    assert "\n" not in caught.value.message
    assert [Path(path).read_bytes() for path in paths] == before
    assert not (home / "devicemapper").exists()
    return caught.value.message


def dumped(home: Path) -> str:
    parts: list[str] = []

    class Out:
        def write(self, text: str) -> None:
            parts.append(text)

    with metadata_of(home, "emulated") as metadata:
        dump(metadata, Out())
    return "".join(parts)


def test_two_devices_are_used_whole_and_found_again(home: Path, source: PoolSource) -> None:
    init(home, source)
    assert os.listdir(home / "devicemapper") == []
    with opening.open_home(home, BACKEND) as devices:
        status = devices.reports.status()
        assert (status.data_file, status.metadata_file) == (source.data_device, source.metadata_device)
        assert status.data_total_bytes == 48 * MIB
        assert status.metadata_total_bytes == 8 * MIB
        assert [record.name for record in devices.records()] == ["base", "web"]


@pytest.mark.parametrize("role", ["data", "metadata"])
def test_the_missing_half_is_a_file_of_the_home(home: Path, source: PoolSource, role: str) -> None:
    half = PoolSource(**{f"{role}_device": getattr(source, f"{role}_device")})
    init(home, half)
    (other,) = {"data", "metadata"} - {role}
    assert os.listdir(home / "devicemapper") == [other]
    with opening.open_home(home, BACKEND) as devices:
        status = devices.reports.status()
        assert status.data_total_bytes == (48 if role == "data" else 64) * MIB
        assert status.metadata_total_bytes == (8 if role == "metadata" else 4) * MIB
        devices.create("more")


@pytest.mark.parametrize(("role", "discards"), [("data", False), ("metadata", True), ("", True)])
def test_removed_devices_are_discarded_where_the_data_is_in_the_home(
    home: Path, source: PoolSource, role: str, discards: bool
) -> None:
    mine = PoolSource(**{f"{role}_device": getattr(source, f"{role}_device")}) if role else PoolSource()
    init(home, mine)
    for words, wanted in (((), discards), (("dm.blkdiscard=true",), True), (("dm.blkdiscard=false",), False)):
        with open_here(HomeSpec(home, durable=False, storage_options=words)) as opened:
            assert opened.devices.deletions.discards_removed is wanted


def test_relative_paths_are_remembered_as_absolute_ones(
    home: Path, source: PoolSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    init(home, PoolSource("data", "./metadata"))
    monkeypatch.chdir("/")
    with opening.open_home(home, BACKEND) as devices:
        assert devices.pool.table().data_device == source.data_device


def test_a_home_that_says_nothing_gets_the_place_of_its_pool(home: Path, source: PoolSource) -> None:
    init(home, source)
    (home / "cowfs.json").unlink()  # as another program leaves it
    with pytest.raises(HomeError, match="incomplete"):
        opening.open_home(home, BACKEND)
    with opening.open_home(home, BACKEND, opening.OpenOptions(source=source)) as devices:
        assert "web" in devices


def test_a_file_system_is_not_overwritten_unless_forced(home: Path, source: PoolSource) -> None:
    subprocess.run(["mke2fs", "-q", "-F", "-L", "photos", source.data_device], check=True, timeout=60)
    assert "a file system (ext2) labelled 'photos'" in refusal(home, source, errno.EEXIST)
    init(home, source, overwrite=True)
    blkid = subprocess.run(["blkid", "-p", source.data_device], capture_output=True, check=False, timeout=60)
    assert b"photos" not in blkid.stdout


def test_a_partition_table_is_not_overwritten_unless_forced(home: Path, source: PoolSource) -> None:
    for device in (source.data_device, source.metadata_device):
        sector = bytearray(512)
        sector[446:462] = bytes([0, 0, 1, 0, 0x83, 0, 1, 0, 8, 0, 0, 0, 64, 0, 0, 0])
        sector[510:] = b"\x55\xaa"
        with open(device, "r+b") as file:
            file.write(sector)
        assert "a partition table (dos)" in refusal(home, source, errno.EEXIST)
    init(home, source, overwrite=True)


def test_the_metadata_of_another_pool_is_not_overwritten_unless_forced(
    home: Path, source: PoolSource, tmp_path: Path
) -> None:
    init(tmp_path / "other", source)
    message = refusal(home, replace(source, data_device=""), errno.EEXIST)
    assert "metadata of a thin pool already, in transaction 2" in message
    assert "--force" in message
    init(home, source, overwrite=True)


def test_metadata_that_is_not_zero_is_refused(home: Path, source: PoolSource) -> None:
    with open(source.metadata_device, "r+b") as file:
        file.seek(100)
        file.write(b"?")
    assert "its first block is not zero" in refusal(home, source, errno.EEXIST)


def test_one_device_twice_is_refused(home: Path, source: PoolSource, tmp_path: Path) -> None:
    os.link(source.data_device, tmp_path / "alias")
    for alias in (source.data_device, str(tmp_path / "alias")):
        assert "are the same device" in refusal(home, PoolSource(source.data_device, alias), errno.EINVAL)


@pytest.mark.parametrize(
    ("path", "number", "text"),
    [
        ("/nowhere/disk", errno.ENOENT, "no such file"),
        ("/dev/null", errno.ENOTBLK, "neither a block device nor a file"),
        ("/", errno.ENOTBLK, "neither a block device nor a file"),
    ],
)
def test_what_is_no_device_is_refused(home: Path, source: PoolSource, path: str, number: int, text: str) -> None:
    assert text in refusal(home, replace(source, data_device=path), number)
    assert text in refusal(home, replace(source, metadata_device=path), number)


def test_a_device_that_is_too_small_is_refused(home: Path, source: PoolSource) -> None:
    for role in ("data", "metadata"):
        path = getattr(source, f"{role}_device")
        size = os.path.getsize(path)
        os.truncate(path, 4096)
        with pytest.raises(UsageError, match=f"{role} size 0|{role} size 4096"):
            init(home, source)
        os.truncate(path, size)


def test_a_device_that_is_missing_or_cut_short_is_reported(home: Path, source: PoolSource, tmp_path: Path) -> None:
    init(home, source)
    os.rename(source.data_device, tmp_path / "elsewhere")
    with pytest.raises(HomeError, match=f"{source.data_device} missing; attach what holds it"):
        opening.open_home(home, BACKEND)
    os.rename(tmp_path / "elsewhere", source.data_device)
    os.truncate(source.data_device, 40 * MIB)
    with pytest.raises(HomeError, match="truncated"):
        opening.open_home(home, BACKEND)


def test_a_pool_in_use_is_reported(home: Path, source: PoolSource) -> None:
    init(home, source)
    table = PoolTable(Sectors(96 * MIB // 1024), source.metadata_device, source.data_device, Sectors(128))
    pool = BACKEND.open_pool("other", table)
    with pytest.raises(HomeBusy, match=r"in use by another pool.*--backend dmthin"):
        opening.open_home(home, BACKEND)
    pool.close()
    opening.open_home(home, BACKEND).close()


class Interrupted(BaseException):
    pass


class DyingExt4(Ext4):
    def make(self, device: BlockDevice, uuid: str) -> None:
        device.pwrite(0, b"half" * 1024)
        raise Interrupted


def test_a_making_that_was_cut_short_is_repeated_on_its_own_devices_only(
    home: Path, source: PoolSource, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        opening.make_home(home, BACKEND, replace(OPTIONS, source=source), injected=Injected(filesystem=DyingExt4()))
    assert "thin pool already" in refusal(tmp_path / "other", source, errno.EEXIST)
    init(home, source)
    with opening.open_home(home, BACKEND) as devices:
        assert "web" in devices


def test_pools_of_the_kernel_need_a_backend_that_has_them(home: Path) -> None:
    with pytest.raises(MissingRequirement, match=r"'tank' of the kernel.*--backend dmthin"):
        init(home, PoolSource(thin_pool="/dev/mapper/tank"))


@pytest.mark.parametrize(
    "source", [PoolSource(thin_pool="a/b"), PoolSource(thin_pool="/dev/mapper/"), PoolSource("/x", thin_pool="tank")]
)
def test_sources_that_cannot_be(home: Path, source: PoolSource) -> None:
    with pytest.raises(UsageError):
        init(home, source)
    assert not home.exists()


def test_metadata_on_a_device_is_checked_repaired_and_restored_in_place(
    home: Path, source: PoolSource, tmp_path: Path
) -> None:
    init(home, source)
    whole = Path(source.metadata_device).read_bytes()
    xml = dumped(home)
    assert check_home(home, "emulated").clean
    with open(source.metadata_device, "r+b") as file:
        file.seek(METADATA_BLOCK_BYTES)
        file.write(os.urandom(METADATA_BLOCK_BYTES * 4))
    damaged = Path(source.metadata_device).read_bytes()
    assert not check_home(home, "emulated").clean
    (tmp_path / "xml").write_text(xml)
    with (tmp_path / "xml").open("rb") as file:
        assert restore_home(home, file).clean
    assert dumped(home) == xml
    assert (home / "devicemapper" / "metadata.replaced").read_bytes() == damaged
    assert not (home / "devicemapper" / "metadata.new").exists()
    Path(source.metadata_device).write_bytes(whole)
    with closing(FileDevice(source.metadata_device)) as device:
        damage.data_bitmap_checksum(device)
    result = repair_home(home)
    assert result.repaired
    assert result.clean
    assert dumped(home) == xml
    with opening.open_home(home, BACKEND) as devices:
        devices.create("more")
