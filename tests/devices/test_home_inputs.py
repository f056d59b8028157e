"""What people and damaged disks can put in: names, sizes, directories, records. One clear line each."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.names import check_name
from cowfs.devices.on_disk.options import HomeOptions, min_metadata_bytes
from cowfs.devices.on_disk.records import DeviceFile, SetFile, TransactionFile
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.errors import (
    DeviceBusy,
    DeviceExists,
    FilesystemError,
    HomeError,
    HomeVersionError,
    MetadataCorrupt,
    NotAHome,
    UnknownDevice,
    UsageError,
)
from tests.devices.home_fakes import (
    MIB,
    SMALL,
    FakeBackend,
    Filesystem,
    assert_whole,
    make_home,
    names,
    open_home,
    record_files,
)

KIB, GIB, TIB = 1 << 10, 1 << 30, 1 << 40


# --- names

BAD_NAMES = [
    "", "base", "deviceset-metadata", "transaction-metadata", ".", "..", ".x", "a/b", "/a", "x.migrated", "a\0b",
    "a\nb", "a\tb", "a\x7fb", "\u2028", "x" * 256, "é" * 128, "\udcff", "a\u202eb",
]  # fmt: skip
GOOD_NAMES = ["a", "x" * 255, "é" * 127, "-init", "with space", "pool", "a.b", "migrated", "名前", "~", "a\\b", "%s"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_cannot_be_are_refused_before_anything_changes(home: Path, backend: FakeBackend, name: str) -> None:
    with open_home(home, backend) as devices:
        backend.events.clear()
        with pytest.raises(UsageError, match=r"cannot be the name of a device: .*; choose another name") as caught:
            devices.create(name)
        assert "\n" not in str(caught.value)
        assert backend.events == []
        assert names(devices) == ["a", "base"]


@pytest.mark.parametrize("name", GOOD_NAMES, ids=ascii)
def test_other_names_work(home: Path, backend: FakeBackend, name: str) -> None:
    check_name(name)
    with open_home(home, backend) as devices:
        if name != "a":
            devices.create(name)
        devices.active.activate(name)
    with open_home(home, backend) as devices:
        assert devices.record(name).parent == "base"
        devices.remove(name)
        assert_whole(devices)


def test_unknown_and_taken_names(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        with pytest.raises(DeviceExists, match=r"device 'a' exists already \(thin 2\)"):
            devices.create("a")
        for use in (devices.remove, devices.record, devices.active.activate, devices.reports.inspect):
            with pytest.raises(UnknownDevice, match="there is no device 'x' in the home"):
                use("x")
        with pytest.raises(UnknownDevice):
            devices.create("b", parent="x")
        with pytest.raises(UsageError, match="not active"):
            devices.active.deactivate("a")
        assert_whole(devices)


def test_a_device_is_active_once_for_all_its_users(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        thin = devices.active.activate("a")
        assert devices.active.activate("a") is thin
        with pytest.raises(DeviceBusy, match="is active for writing"):
            devices.active.activate("a", read_only=True)
        devices.active.deactivate("a")
        assert devices.active.thins() == {"a": thin}
        devices.active.deactivate("a")
        assert devices.active.thins() == {}
        assert devices.pool.active() == []
        devices.active.activate("a", read_only=True)


# --- sizes


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"block_bytes": 0}, "block size 0 (0 B) is not possible; take a multiple of 64K from 64K to 1G"),
        ({"block_bytes": -1}, "block size -1"),
        ({"block_bytes": 64 * KIB + 1}, "block size 65537"),
        ({"block_bytes": 32 * KIB}, "block size 32768"),
        ({"block_bytes": 96 * KIB}, "block size 98304"),
        ({"block_bytes": 2 * GIB}, "block size 2147483648"),
        ({"block_bytes": GIB + 64 * KIB}, "block size 1073807360"),
        ({"data_size_bytes": 0}, "data size 0 is not possible; it must be more than 0"),
        ({"data_size_bytes": -1}, "data size -1 is not possible"),
        ({"data_size_bytes": 4096}, "(4 KiB) is too small: an empty base device of 1 MiB takes 65536 bytes"),
        ({"data_size_bytes": MIB + 512}, "data size 1049088 is not a multiple of the block size, 65536 bytes; take 10"),
        ({"data_size_bytes": 1 << 60, "block_bytes": 64 * KIB}, "(1024 PiB) is too large"),
        ({"metadata_size_bytes": 0}, "metadata size 0 is not possible"),
        ({"metadata_size_bytes": MIB}, "too small for 64 data blocks; take at least 2097152 (2 MiB)"),
        ({"metadata_size_bytes": 2 * MIB + 512}, "metadata size 2097664 is not a multiple of the metadata block size"),
        ({"metadata_size_bytes": 16 * GIB}, "more than a pool can use; 17045913600 (15.9 GiB) is the most"),
        ({"data_size_bytes": 15 * TIB}, "metadata size 2097152 (2 MiB) is too small for 251658240 data blocks"),
        ({"base_size_bytes": 0}, "base size 0 is not possible"),
        ({"base_size_bytes": -512}, "base size -512 is not possible"),
        ({"base_size_bytes": MIB + 1}, "base size 1048577 is not a multiple of the sector size, 512 bytes"),
        ({"base_size_bytes": 64 * KIB}, "base size 65536 (64 KiB) is too small for an ext4"),
        ({"base_size_bytes": 2 << 60}, "base size 2305843009213693952 (2048 PiB) is too large; 1152921504606846976"),
        ({"low_water_blocks": -1}, "low water mark -1 is negative"),
        ({"min_free_percent": 100}, "minimum free space of 100 % is not possible"),
        ({"min_free_percent": -1}, "minimum free space of -1 %"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused_before_anything_is_made(
    tmp_path: Path, backend: FakeBackend, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError) as caught:
        make_home(tmp_path / "home", backend, replace(SMALL, **change))
    assert text in str(caught.value)
    assert not (tmp_path / "home").exists()


def test_the_defaults_are_mobys() -> None:
    options = HomeOptions()
    options.check()
    assert (options.data_size_bytes, options.metadata_size_bytes) == (100 * GIB, 2 * GIB)
    assert (options.base_size_bytes, options.block_bytes) == (10 * GIB, 64 * KIB)
    assert (options.low_water_blocks, options.min_free_percent) == (32768, 10)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "size of device 'b' 0 is not possible"),
        (-1, "size of device 'b' -1 is not possible"),
        (MIB + 7, "size of device 'b' 1048583 is not a multiple of the sector size"),
        (1 << 61, "is too large"),
        (512, "size 512 of device 'b' is less than that of its parent 'a', 1048576; a snapshot cannot be smaller"),
    ],
)
def test_device_sizes_that_cannot_be(home: Path, backend: FakeBackend, size: int, text: str) -> None:
    with open_home(home, backend) as devices:
        with pytest.raises(UsageError) as caught:
            devices.create("b", parent="a", size_bytes=size)
        assert text in str(caught.value)
        assert devices.create("b", parent="a", size_bytes=2 * MIB).size_bytes == 2 * MIB
        assert devices.create("c", parent="b").size_bytes == 2 * MIB


def test_a_device_whose_file_system_cannot_be_grown_is_not_kept(home: Path, backend: FakeBackend) -> None:
    class TooSmall(Filesystem):
        def grow(self, device: object) -> None:
            raise FilesystemError("no room for it")

    with open_home(home, backend, filesystem=TooSmall()) as devices:
        with pytest.raises(FilesystemError, match="no room for it"):
            devices.create("b", size_bytes=2 * MIB)
        assert names(devices) == ["a", "base"]
        assert_whole(devices)


def test_the_least_metadata_grows_with_the_data() -> None:
    assert min_metadata_bytes(1) == 2 * MIB
    assert min_metadata_bytes(1 << 20) < min_metadata_bytes(1 << 28) < 100 * MIB


# --- directories that are or are not homes


def test_a_new_home_has_mobys_layout_and_modes(home: Path) -> None:
    modes = {
        str(path.relative_to(home)): stat.S_IMODE(path.lstat().st_mode)
        for path in sorted(home.rglob("*"))
        if not path.name.startswith("cowfs.")
    }
    assert modes == {
        "devicemapper": 0o700,
        "devicemapper/data": 0o600,
        "devicemapper/metadata": 0o600,
        "metadata": 0o700,
        "metadata/a": 0o600,
        "metadata/base": 0o600,
        "metadata/deviceset-metadata": 0o600,
        "metadata/transaction-metadata": 0o600,
        "mnt": 0o700,  # 0755 in moby's, whose home is always 0700
    }
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    own = {path.name for path in home.glob("cowfs.*")}
    assert own == {"cowfs.json", "cowfs.lock", "cowfs.parents"}
    assert (home / "devicemapper/data").stat().st_blocks == 0  # sparse


def test_records_have_mobys_keys_and_nothing_else(home: Path) -> None:
    def text(name: str) -> str:
        return (home / "metadata" / name).read_text()

    assert text("base") == '{"device_id":1,"size":1048576,"transaction_id":1,"initialized":true,"deleted":false}'
    assert text("a") == '{"device_id":2,"size":1048576,"transaction_id":2,"initialized":false,"deleted":false}'
    assert text("transaction-metadata") == '{"open_transaction_id":2,"device_hash":"a","device_id":2}'
    assert text("deviceset-metadata") == (
        '{"next_device_id":0,"BaseDeviceUUID":"11111111-2222-4333-8444-555555555555","BaseDeviceFilesystem":"ext4"}'
    )


def test_the_bases_transaction_names_it_by_the_empty_string(tmp_path: Path, backend: FakeBackend) -> None:
    make_home(tmp_path / "home", backend).close()
    transaction = json.loads((tmp_path / "home/metadata/transaction-metadata").read_text())
    assert transaction == {"open_transaction_id": 1, "device_hash": "", "device_id": 1}


def test_directories_that_are_not_homes(tmp_path: Path, backend: FakeBackend) -> None:
    with pytest.raises(NotAHome, match="is not a home: it does not exist; make one with init"):
        open_home(tmp_path / "nothing", backend)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAHome, match="it is an empty directory"):
        open_home(tmp_path / "empty", backend)
    assert os.listdir(tmp_path / "empty") == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(NotAHome, match="it is something else"):
        open_home(tmp_path / "other", backend)
    assert os.listdir(tmp_path / "other") == ["file"]
    with pytest.raises(NotAHome):
        open_home(tmp_path / "other/file", backend)


def test_init_makes_no_home_over_anything(home: Path, tmp_path: Path, backend: FakeBackend) -> None:
    with pytest.raises(HomeError, match="is a home already; nothing was changed") as caught:
        make_home(home, backend)
    assert caught.value.errno == errno.EEXIST
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(HomeError, match="not an empty directory") as caught:
        make_home(tmp_path / "other", backend)
    assert caught.value.errno == errno.ENOTEMPTY
    with pytest.raises(HomeError, match="cannot make the directory") as caught:
        make_home(tmp_path / "no/such/parent", backend)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(HomeError):
        make_home(tmp_path / "other/file", backend)
    (tmp_path / "empty").mkdir()
    make_home(tmp_path / "empty", backend).close()


def test_a_home_cut_short_is_not_opened_but_made_again(tmp_path: Path, backend: FakeBackend) -> None:
    class NoSpace(Filesystem):
        def make(self, device: object, uuid: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    home = tmp_path / "home"
    with pytest.raises(OSError, match="No space"):
        make_home(home, backend, filesystem=NoSpace())
    with pytest.raises(NotAHome, match="is incomplete, because its initialisation was interrupted; run init again"):
        open_home(home, backend)
    with make_home(home, backend, replace(SMALL, base_size_bytes=2 * MIB)) as devices:
        assert devices.record("base").size_bytes == 2 * MIB
        assert_whole(devices)


def test_homes_of_other_formats_and_versions_are_refused(home: Path, backend: FakeBackend) -> None:
    path = home / "cowfs.json"
    good = path.read_bytes()
    for content, text in [
        ({"format": "cowfs home", "version": 2}, "version 2, and this program knows 'cowfs home' version 1"),
        ({"format": "something", "version": 1}, "is of format 'something'"),
        ([], "is damaged"),
        ({"format": "cowfs home", "version": 1, "low_water_blocks": "x"}, "is damaged"),
    ]:
        path.write_text(json.dumps(content))
        with pytest.raises(HomeVersionError) as caught:
            open_home(home, backend)
        assert text in str(caught.value)
    path.write_bytes(good)
    open_home(home, backend).close()


@pytest.mark.parametrize("missing", [["data"], ["metadata"], ["data", "metadata"]])
def test_missing_pool_files_are_reported_and_not_made(home: Path, backend: FakeBackend, missing: list[str]) -> None:
    for name in missing:
        (home / "devicemapper" / name).rename(home.parent / name)
    with pytest.raises(HomeError, match=r"is incomplete: .* missing; restore from a backup, nothing was changed"):
        open_home(home, backend)
    with pytest.raises(HomeError, match="is a home already"):
        make_home(home, backend)
    for name in missing:
        assert not (home / "devicemapper" / name).exists()
        (home.parent / name).rename(home / "devicemapper" / name)
    with open_home(home, backend) as devices:
        assert_whole(devices)


def test_a_truncated_data_file_says_how_much_is_missing(home: Path, backend: FakeBackend) -> None:
    data = home / "devicemapper/data"
    os.truncate(data, 4 * MIB - 1000)
    with pytest.raises(HomeError, match=r"data is truncated: it is 4193304 bytes .* 1000 bytes \(1000 B\) are missing"):
        open_home(home, backend)
    assert data.stat().st_size == 4 * MIB - 1000


def test_a_longer_data_file_is_used_whole(home: Path, backend: FakeBackend) -> None:
    os.truncate(home / "devicemapper/data", 5 * MIB + 1000)
    with open_home(home, backend) as devices:
        assert devices.pool.table().data_blocks == 80
    with open_home(home, backend, read_only=True) as devices:
        assert devices.pool.table().data_blocks == 64


@pytest.mark.parametrize("length", [0, 100, 4095])
def test_a_metadata_file_without_a_superblock(home: Path, backend: FakeBackend, length: int) -> None:
    os.truncate(home / "devicemapper/metadata", length)
    with pytest.raises(HomeError, match="is truncated"):
        open_home(home, backend)


def test_a_superblock_of_zeros_is_not_formatted_over(home: Path, backend: FakeBackend) -> None:
    path = home / "devicemapper/metadata"
    with path.open("r+b") as file:
        file.write(bytes(4096))
    with pytest.raises(HomeError, match="holds no pool: its superblock is all zeros"):
        open_home(home, backend)
    assert path.read_bytes()[:4096] == bytes(4096)


def test_a_damaged_superblock(home: Path, backend: FakeBackend) -> None:
    with (home / "devicemapper/metadata").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    with pytest.raises(MetadataCorrupt, match="metadata block 0") as caught:
        open_home(home, backend)
    assert f"this is in {home}/devicemapper/metadata, and 'pool check' shows" in str(caught.value)


def test_links_in_place_of_pool_files_or_records_are_not_followed(home: Path, backend: FakeBackend) -> None:
    victim = home.parent / "victim"
    victim.write_text('{"device_id":9,"size":512}')
    (home / "metadata/link").symlink_to(victim)
    (home / "metadata/.tmp-cowfs").symlink_to(victim)
    with open_home(home, backend) as devices:
        assert "link" not in devices
        devices.create("b")
    assert victim.read_text() == '{"device_id":9,"size":512}'


def test_what_root_makes_in_a_home_is_its_owner_s(home: Path, backend: FakeBackend) -> None:
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    for path in [home, *home.rglob("*")]:
        os.chown(path, owner, -1)
    (home / "cowfs.lock").unlink(missing_ok=True)
    (home / "metadata/broken").write_bytes(b"?")
    os.chown(home / "metadata/broken", owner, -1)
    with open_home(home, backend) as devices:
        devices.create("b", parent="a")
        with devices.replacing("b"):
            pass
    HomeFiles(str(home)).make_sparse(str(home / "sparse"), 4096)
    (home.parent / "root's").touch()
    (home / "cowfs.other").hardlink_to(home.parent / "root's")
    HomeFiles(str(home)).append(str(home / "cowfs.other"), b"")
    assert (home.parent / "root's").stat().st_uid == os.geteuid()
    (home / "cowfs.other").unlink()
    assert {path.name for path in home.rglob("*") if path.lstat().st_uid != owner} == set()


# --- records


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"\x80\xff", bytes(70000), b'{"device_id":1}', b'{"device_id":16777216,"size":512}',
     b'{"device_id":-1,"size":512}', b'{"device_id":5,"size":0}', b'{"device_id":5,"size":511}',
     b'{"device_id":"5","size":512}', b'{"device_id":5,"size":1.5}', b'{"device_id":5,"size":99999999999999999999}'],
)  # fmt: skip
def test_a_damaged_record_is_set_aside_and_stops_nothing(
    home: Path, backend: FakeBackend, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "metadata/broken").write_bytes(content)
    with open_home(home, backend, read_only=True) as devices:
        assert names(devices) == ["a", "base"]
        assert "left where it is" in devices.problems[0]
    with open_home(home, backend) as devices:
        assert names(devices) == ["a", "base"] == record_files(home)
        (problem,) = devices.problems
        assert problem.startswith("the record of device 'broken' is damaged (")
        assert caplog.messages == [problem]  # the next opening finds nothing any more
        devices.create("broken")
    assert (home / "cowfs.damaged/broken").read_bytes() == content


def test_a_size_that_is_no_whole_number_of_sectors_is_made_one(home: Path, backend: FakeBackend) -> None:
    """As Docker records it for a size such as 1.3G; the kernel's table never had more than the whole sectors."""
    with open_home(home, backend) as devices:
        made = devices.create("web")
    record = json.loads((home / "metadata/web").read_bytes())
    (home / "metadata/web").write_text(json.dumps({**record, "size": made.size_bytes + 51}))
    with open_home(home, backend) as devices:
        assert devices.problems == ()
        assert devices.record("web") == made
        assert devices.create("web-1", parent="web").size_bytes == made.size_bytes


def test_records_that_claim_one_thin_are_reported(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        thin_id = devices.create("web").device_id
    (home / "metadata/other").write_bytes((home / "metadata/web").read_bytes())
    with open_home(home, backend) as devices:
        (problem,) = devices.reports.status().problems
        assert problem.startswith(f"thin {thin_id} is that of 'other' and 'web'")
        with pytest.raises(HomeError, match="'recover'"):
            devices.remove("other")


def test_the_thin_of_a_damaged_record_is_kept_and_its_id_not_used(home: Path, backend: FakeBackend) -> None:
    (home / "metadata/a").write_bytes(b"?")
    with open_home(home, backend) as devices:
        assert devices.reports.status().orphan_thin_ids == [2]
        assert devices.create("b").device_id == 3
        assert 2 in devices.pool.thin_ids()


def test_a_damaged_base_record_or_set_file_is_made_good(home: Path, backend: FakeBackend) -> None:
    (home / "metadata/base").write_bytes(b"?")
    (home / "metadata/deviceset-metadata").write_bytes(b"?")
    with open_home(home, backend) as devices:
        assert names(devices) == ["a"]
        assert len(devices.problems) == 2
        devices.create("b")
        assert devices.record("base").initialized
    with open_home(home, backend) as devices:
        assert names(devices) == ["a", "b", "base"]
        assert devices.problems == ()


def test_directories_and_names_that_are_not_text_are_no_records(home: Path, backend: FakeBackend) -> None:
    (home / "metadata/directory").mkdir()
    with open(os.fsencode(home / "metadata") + b"/\xff", "wb") as file:
        file.write((home / "metadata/a").read_bytes())
    (home / "metadata/old.migrated").write_text("?")
    (home / "metadata/.tmp123").write_text("?")
    with open_home(home, backend) as devices:
        assert names(devices) == ["a", "base"]
        assert len(devices.problems) == 2


def test_keys_that_are_missing_or_unknown_are_fine(home: Path, backend: FakeBackend) -> None:
    """Older mobys wrote fewer keys; a newer one may write more."""
    (home / "metadata/old").write_text('{"device_id":5,"size":1048576}')
    (home / "metadata/new").write_text('{"device_id":6,"size":1048576,"transaction_id":18446744073709551615,"x":[1]}')
    with open_home(home, backend) as devices:
        assert devices.record("old").transaction_id == 0
        assert devices.record("new").transaction_id == 2**64 - 1


def test_parents_survive_torn_and_foreign_lines(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.create("b", parent="a")
    path = home / "cowfs.parents"
    with path.open("ab") as file:
        file.write(b'\n{"name":"a","transac')
    with open_home(home, backend) as devices:
        devices.create("c", parent="b")
        assert [record.parent for record in devices.records()] == ["base", "a", None, "b"]
    with open_home(home, backend) as devices:
        assert [record.parent for record in devices.records()] == ["base", "a", None, "b"]
    path.unlink()
    with open_home(home, backend) as devices:
        assert {record.parent for record in devices.records()} == {None}


def test_a_parent_is_not_that_of_another_device_of_the_name(home: Path, backend: FakeBackend) -> None:
    """moby removes and makes devices without a word to the file of parents."""
    path = home / "metadata/a"
    path.write_text(path.read_text().replace('"transaction_id":2', '"transaction_id":9'))
    with open_home(home, backend) as devices:
        assert devices.record("a").parent is None


def test_the_file_of_parents_stays_in_proportion(home: Path, backend: FakeBackend) -> None:
    for _ in range(3):
        with open_home(home, backend) as devices:
            for _ in range(50):
                devices.create("b")
                devices.remove("b")
    with open_home(home, backend) as devices:
        assert devices.record("a").parent == "base"
    assert (home / "cowfs.parents").stat().st_size < 200 * 60


def test_the_old_single_file_of_records_is_taken_over(home: Path, backend: FakeBackend) -> None:
    old = {"Devices": {"": {"device_id": 1, "size": MIB, "transaction_id": 1, "initialized": True},
                       "x": {"device_id": 2, "size": MIB, "transaction_id": 2, "initialized": False}}}  # fmt: skip
    for name in ("a", "base"):
        (home / "metadata" / name).unlink()
    (home / "devicemapper/json").write_text(json.dumps(old))
    with open_home(home, backend) as devices:
        assert names(devices) == ["base", "x"]
        assert_whole(devices)
    assert not (home / "devicemapper/json").exists()
    assert json.loads((home / "devicemapper/json.migrated").read_text()) == old
    with open_home(home, backend) as devices:
        assert names(devices) == ["base", "x"]


# --- the base device


def test_a_base_of_another_pool_is_refused(home: Path, backend: FakeBackend) -> None:
    path = home / "metadata/deviceset-metadata"
    path.write_text(path.read_text().replace("11111111", "99999999"))
    with pytest.raises(HomeError, match=r"has UUID 11111111-.* says 99999999-.*do not belong together"):
        open_home(home, backend)
    with open_home(home, backend, verify=False) as devices:
        assert_whole(devices)


def test_a_uuid_that_was_never_stored_is_stored(home: Path, backend: FakeBackend) -> None:
    path = home / "metadata/deviceset-metadata"
    good = path.read_text()
    path.unlink()
    with open_home(home, backend, read_only=True):
        pass
    assert not path.exists()
    open_home(home, backend).close()
    assert json.loads(path.read_text())["BaseDeviceUUID"] == json.loads(good)["BaseDeviceUUID"]


@pytest.mark.parametrize("change", ['"initialized":false', '"deleted":true'])
def test_an_unfinished_base_is_made_again_when_it_is_needed(home: Path, backend: FakeBackend, change: str) -> None:
    path = home / "metadata/base"
    key = change.split(":", maxsplit=1)[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | json.loads("{" + change + "}")))
    with open_home(home, backend) as devices:
        devices.create("from-a", parent="a")
        assert devices.record("base").device_id == 1
        devices.create("b")
        assert devices.record("base").device_id not in (1, 2)
        assert devices.record("base").initialized
        assert not devices.record("base").deleted, key
        assert_whole(devices)


def test_a_base_without_its_thin_is_made_again(home: Path, backend: FakeBackend) -> None:
    del backend.states[str(home / "devicemapper/metadata")].thins[1]
    with open_home(home, backend) as devices:
        assert devices.problems[0].startswith("the thin 1 of device 'base' is not in the pool")
        devices.create("b")
        assert_whole(devices)


def test_nothing_is_activated_to_open_but_the_base(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        assert devices.pool.active() == []
        assert devices.active.thins() == {}


def test_records_round_trip(home: Path) -> None:
    store = DeviceStore(HomeFiles(str(home), durable=False), read_only=False)
    store.save("x", DeviceFile(7, 512, 2**64 - 1, initialized=True, deleted=True))
    store.save_set(SetFile(7, "u", "xfs"))
    store.save_transaction(TransactionFile(2**64 - 1, "", 7))
    other = DeviceStore(HomeFiles(str(home)), read_only=False)
    other.load()
    assert other.require("x") == DeviceFile(7, 512, 2**64 - 1, initialized=True, deleted=True)
    assert other.load_set() == SetFile(7, "u", "xfs")
    assert other.load_transaction() == TransactionFile(2**64 - 1, "", 7)
    assert other.problems == []
