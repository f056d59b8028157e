"""The layer driver on a new home, without a mount."""

from __future__ import annotations

import io
import re
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from cowfs.errors import CowfsError, DeviceBusy, DeviceExists, UnknownDevice, UsageError
from cowfs.filetree import ROOT_INODE, FileTree
from cowfs.fuse.home_view import HomeView
from cowfs.home.serving.served_home import ViewMounter
from cowfs.home.serving.shown_devices import ShownDevices
from cowfs.layers.driver import LayerDriver
from cowfs.layers.roots import find_root
from cowfs.steps import finish, pieces_of
from cowfs.testing.judges import require_clean_pool
from tests.layers.driver_home import Opened, archive, members, names, opened


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Layers `one`, with three files, and `two` on it, which changes one, adds one and deletes one."""
    path = tmp_path / "home"
    with opened(path) as made:
        made.driver.create("one", None)
        made.apply("one", archive(etc__a=b"a", etc__b=b"b", c=b"ccc"))
        made.driver.create("two", "one")
        made.apply("two", archive(etc__a=b"changed", etc__b=None, d=b"dd"))
    return path


TWO_CHANGES = [("A", "/d"), ("C", "/etc"), ("C", "/etc/a"), ("D", "/etc/b")]


def test_changes_diff_and_size_tell_the_same(home: Path) -> None:
    with opened(home) as made:
        assert made.changes("one") == [("A", "/c"), ("A", "/etc"), ("A", "/etc/a"), ("A", "/etc/b")]
        assert made.changes("two", "one") == TWO_CHANGES
        assert names(made.diff("two", "one")) == ["d", "etc", "etc/a", "etc/.wh.b"]
        assert made.size("two", "one") == len(b"changed") + len(b"dd")
        require_clean_pool(made.devices.pool)


def test_a_diff_applied_elsewhere_gives_the_same_layer(home: Path, tmp_path: Path) -> None:
    with opened(home) as made:
        whole, diff, wanted = made.diff("one"), made.diff("two", "one"), made.diff("two")
        size = made.size("two", "one")
    with opened(tmp_path / "other") as other:
        other.driver.create("one", None)
        other.apply("one", whole)
        other.driver.create("two", "one")
        assert other.apply("two", diff) == size
        assert other.changes("two", "one") == TWO_CHANGES
        assert members(other.diff("two")) == members(wanted)


def test_the_base_device_stays_empty(home: Path) -> None:
    with opened(home) as made:
        with pytest.raises(UsageError, match="'base' is reserved"):
            made.apply("base", archive(a=b"in every layer"))
        with pytest.raises(UsageError, match="'base' is reserved"):
            made.driver.get("base")
        made.driver.create("three", None)
        assert made.changes("three") == []
        assert made.changes("three", "base") == []


def put_file(made: Opened, device: str, name: bytes, content: bytes) -> None:
    with made.volumes.opened(device) as volume:
        inode = volume.make_node(ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0).inode
        volume.write(inode, 0, content)


def test_of_another_device_all_files_are_compared(home: Path, tmp_path: Path) -> None:
    with opened(home) as made:
        made.devices.create("web")
        assert made.changes("web", "base") == []
        put_file(made, "web", b"before", b"before")
        made.devices.create("web-1", parent="web")
        put_file(made, "web-1", b"after", b"12345")
        with made.volumes.opened("web-1") as volume:
            volume.unlink(ROOT_INODE, b"before")
        assert made.changes("web-1", "web") == [("A", "/after"), ("D", "/before")]
        assert made.changes("web", "base") == [("A", "/before")]
        assert names(made.diff("web-1", "web")) == ["after", ".wh.before"]
        assert made.size("web-1", "web") == 5
        assert ("A", "/after") in made.changes("web-1")
        whole = made.diff("web-1")
        made.driver.create("from-device", None)
        made.apply("from-device", whole)
        assert set(names(made.diff("from-device"))) == {".", "after", "lost+found"}


def test_layers_and_other_devices_are_distinguished(home: Path) -> None:
    with opened(home) as made:
        made.devices.create("web")
        put_file(made, "web", b"f", b"f")
        made.devices.create("web-1", parent="web")
        made.devices.create("two-copy", parent="two")
        made.driver.create("fresh", None)
        assert made.driver.list_layers() == ["fresh", "one", "two", "two-copy"]
        assert [made.driver.exists(name) for name in ("web", "web-1", "fresh", "base")] == [False, False, True, False]
        for pair in (("web", "one"), ("one", "web"), ("fresh", "web")):
            for ask in (made.changes, made.diff, made.size):
                with pytest.raises(
                    UsageError, match=r"device 'web' is not a layer and '(one|fresh)' is: one's files are"
                ):
                    ask(*pair)
        assert made.changes("two-copy", "two") == []
        for use in (
            lambda: made.apply("web", archive(a=b"a")),
            lambda: made.driver.get("web"),
            lambda: made.driver.remove("web"),
            lambda: made.driver.put("web"),
            lambda: made.driver.metadata("web"),
        ):
            with pytest.raises(UsageError, match="device 'web' is not a layer: it was made by 'create'"):
                use()
        assert "web" in made.devices
    with opened(home) as made:
        assert made.driver.list_layers() == ["fresh", "one", "two", "two-copy"]


def test_where_nothing_was_noted_the_content_decides(home: Path) -> None:
    """As in a home that Docker made, or an earlier cowfs."""
    with opened(home) as made:
        made.devices.create("web")
        put_file(made, "web", b"f", b"f")
        made.driver.create("fresh", None)
    parents = home / "cowfs.parents"
    parents.write_bytes(re.sub(rb',"is_layer":(true|false)', b"", parents.read_bytes()))
    with opened(home) as made:
        assert made.devices.record("web").is_layer is None
        assert made.changes("web", "base") == [("A", "/f")]
        assert made.changes("fresh", "base") == []
        assert made.changes("two", "one") == TWO_CHANGES
        assert made.changes("two", "base") != []
        with pytest.raises(UsageError, match="'web' is not a layer and 'two' is"):
            made.changes("two", "web")


@pytest.mark.parametrize("cut", [0, 100, 600, 1500])
def test_an_archive_that_breaks_off_leaves_the_layer_as_it_was(home: Path, cut: int) -> None:
    broken = archive(e=b"e" * 700, etc__a=b"half of this")[:cut] if cut else b"no archive at all" * 100
    with opened(home) as made:
        with pytest.raises(UsageError):
            made.apply("two", broken)
        assert made.changes("two", "one") == TWO_CHANGES
        require_clean_pool(made.devices.pool)
        assert made.devices.reports.status().orphan_thin_ids == []


@pytest.mark.parametrize("is_in_use", [False, True])
def test_a_layer_that_is_being_read_is_removed_when_that_is_done(home: Path, is_in_use: bool) -> None:
    with opened(home) as made:
        wanted = made.diff("two", "one")
        if is_in_use:
            made.volumes.open("two")
        pieces = pieces_of(made.driver.diff("two", "one"))
        read = next(pieces)
        made.driver.remove("two")
        made.driver.remove("one")
        assert made.driver.list_layers() == []
        read += b"".join(pieces)
        assert read == wanted
        if is_in_use:
            made.volumes.close("two")
        made.devices.deletions.retry()
        assert not made.driver.exists("two")
        assert not made.driver.exists("one")
        require_clean_pool(made.devices.pool)


def test_a_layer_that_is_being_read_stays_where_nothing_is_put_off(home: Path) -> None:
    options = ["dm.use_deferred_removal=false", "dm.use_deferred_deletion=false"]
    with opened(home, *options) as made:
        pieces = pieces_of(made.driver.diff("two", None))
        next(pieces)
        with pytest.raises(DeviceBusy, match="being read"):
            made.driver.remove("two")
        pieces.close()
        made.driver.remove("two")
        assert not made.driver.exists("two")


def test_what_a_layer_is_without_is_reported(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = tarfile.TarInfo("named")
    info.pax_headers = {"SCHILY.acl.access": "user::rw-,user:nobody:r--,group::r--,mask::r--,other::---"}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    with opened(home) as made:
        made.apply("two", data.getvalue())
    (message,) = caplog.messages
    assert message.startswith("layer 'two' is without 1 extended attributes of its archive: ")


def test_an_apply_that_is_given_up_leaves_the_layer_as_it_was(home: Path) -> None:
    with opened(home) as made:
        steps = made.driver.apply("two", None, io.BytesIO(archive(e=bytes(range(256)) * 1024, f=b"f")))
        next(steps)
        with pytest.raises(DeviceBusy, match="new content"):
            made.driver.create("three", "two")
        steps.close()
        assert made.changes("two", "one") == TWO_CHANGES
        assert made.devices.reports.status().orphan_thin_ids == []


def test_layers_are_read_while_their_files_are_in_use(home: Path) -> None:
    """A snapshot is read, which holds what was written before, and does not see what comes after."""
    with opened(home) as made, made.volumes.opened("two") as volume:
        rootfs = volume.lookup(ROOT_INODE, b"rootfs").inode
        volume.make_node(rootfs, b"before", stat.S_IFREG | 0o644, 0, 0)
        pieces = pieces_of(made.driver.diff("two", "one"))
        first = next(pieces)
        volume.make_node(rootfs, b"after", stat.S_IFREG | 0o644, 0, 0)
        assert names(first + b"".join(pieces)) == ["before", "d", "etc", "etc/a", "etc/.wh.b"]
        assert ("A", "/after") in made.changes("two", "one")
        assert made.devices.reports.status().orphan_thin_ids == []


def test_a_layer_in_use_is_written_in_place(home: Path) -> None:
    with opened(home) as made, made.volumes.opened("two") as volume:
        made.apply("two", archive(e=b"eee"))
        rootfs = volume.lookup(ROOT_INODE, b"rootfs").inode
        assert volume.lookup(rootfs, b"e").size_bytes == 3
    with opened(home) as made:
        assert made.changes("two", "one") == [TWO_CHANGES[0], ("A", "/e"), *TWO_CHANGES[1:]]


def test_a_layer_is_written_to_only_by_who_changes_it(home: Path) -> None:
    with opened(home) as made:
        view = HomeView(ShownDevices(made.devices, made.volumes, str(home / "mnt")), str(home / "mnt"))
        driver = LayerDriver(made.devices, made.volumes, ViewMounter(view, made.volumes))

        def used(change: Callable[[FileTree], object]) -> None:
            driver.get("three")
            with made.volumes.opened("three") as volume:
                change(volume)
            driver.put("three")
            assert trio.run(view.kernel_cache.close_if_idle, "three")

        driver.create("three", "two")
        used(lambda volume: volume.list_directory(find_root(volume).inode))
        assert made.devices.reports.inspect("three").exclusive_bytes == 0
        assert owner(made, "three") == b"two"
        used(lambda volume: volume.make_directory(find_root(volume).inode, b"new", 0o755, 0, 0))
        assert owner(made, "three") == b"three"
        assert owner(made, "two") == b"two"


def test_a_get_that_fails_keeps_no_server(home: Path) -> None:
    """A server of layers ends once a layer was mounted and none is any more."""
    with opened(home) as made:
        view = HomeView(ShownDevices(made.devices, made.volumes, str(home / "mnt")), str(home / "mnt"))
        driver = LayerDriver(made.devices, made.volumes, ViewMounter(view, made.volumes))
        assert not driver.was_mount_requested
        with pytest.raises(UnknownDevice):
            driver.get("nobody")
        assert driver.was_mount_requested
        assert not driver.has_mounts


def owner(made: Opened, layer_id: str) -> bytes:
    """Whose files they are, as a layer's volume says."""
    with made.volumes.opened(layer_id) as volume:
        return volume.read(volume.lookup(ROOT_INODE, b"id").inode, 0, 100)


def test_a_layer_that_was_never_used_is_empty(home: Path) -> None:
    with opened(home) as made:
        made.driver.create("new", None)
        assert made.changes("new") == []
        assert made.size("new") == 0
        assert names(made.diff("new")) == []
        assert made.changes("two", "new") == made.changes("two")
        assert [kind for kind, _ in made.changes("new", "one")] == ["D", "D"]


def test_layers_go_in_any_order(home: Path) -> None:
    with opened(home) as made:
        made.driver.create("three", "two")
        made.driver.remove("two")
        made.driver.remove("one")
        assert made.driver.list_layers() == ["three"]
        assert ("A", "/etc/a") in made.changes("three")
        made.driver.remove("three")
        made.driver.remove("three")  # so that a removal can go on after an earlier one
        assert made.devices.pool.thin_ids() == [made.devices.record("base").device_id]
        require_clean_pool(made.devices.pool)


def test_a_busy_layer_is_removed_when_it_is_idle(home: Path) -> None:
    with opened(home) as made:
        with made.volumes.opened("two"):
            made.driver.remove("two")
            assert made.driver.exists("two")
            assert made.driver.list_layers() == ["one"]
            assert dict(made.driver.status())["Deferred Deleted Device Count"] == "1"
        assert not made.driver.exists("two")
    with opened(home, "dm.use_deferred_deletion=false", "dm.use_deferred_removal=false") as made:
        with made.volumes.opened("one"), pytest.raises(DeviceBusy):
            made.driver.remove("one")
        assert made.driver.list_layers() == ["one"]


def test_metadata_and_status(home: Path) -> None:
    with opened(home) as made:
        metadata = made.driver.metadata("two")
        assert metadata["DeviceSize"] == str(32 << 20)
        assert int(metadata["DeviceId"]) == made.devices.record("two").device_id
        assert metadata["DeviceName"].endswith("-two")
        status = dict(made.driver.status())
        assert (status["Pool Blocksize"], status["Base Device Size"]) == ("65.54kB", "33.55MB")
        with pytest.raises(UnknownDevice):
            made.driver.metadata("three")


def test_a_layer_may_be_larger_than_its_parent(home: Path) -> None:
    with opened(home) as made:
        made.driver.create("large", "one", {"size": "64M"})
        assert made.driver.metadata("large")["DeviceSize"] == str(64 << 20)
        made.apply("large", archive(big=b"x" * (40 << 20)))
        assert made.size("large", "one") == 40 << 20
        assert made.changes("large", "one") == [("A", "/big")]


def bad(*arguments: object) -> Callable[[Opened], object]:
    return lambda made: made.driver.create(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action", "error", "words"),
    [
        (bad("two", None), DeviceExists, "'two' exists already"),
        (bad("x", "nobody"), UnknownDevice, "no device 'nobody'"),
        (bad("base", None), UsageError, "'base' cannot be the name"),
        (bad("x/y", None), UsageError, "contains a slash"),
        (bad("x", "one", {"size": "1M"}), CowfsError, "smaller"),
        (bad("x", "one", {"size": "10Q"}), UsageError, "invalid size"),
        (bad("x", "one", {"size": "1G", "colour": "red"}), UsageError, "Unknown option colour"),
        (lambda made: made.driver.get("two"), UsageError, "nothing serves this home"),
        (lambda made: finish(made.driver.changes("three", None)), UnknownDevice, "'three'"),
        (lambda made: finish(made.driver.changes("two", "three")), UnknownDevice, "'three'"),
        (lambda made: made.apply("three", archive(a=b"")), UnknownDevice, "'three'"),
        (lambda made: made.apply("two", archive(a=b"x" * (40 << 20))), OSError, "[Nn]o space"),
    ],
)
def test_bad_requests_change_nothing(
    home: Path, action: Callable[[Opened], object], error: type[OSError], words: str
) -> None:
    with opened(home) as made:
        with pytest.raises(error, match=words) as caught:
            action(made)
        assert "\n" not in str(caught.value)
        assert made.driver.list_layers() == ["one", "two"]
        assert made.changes("two", "one") == TWO_CHANGES
        made.driver.put("two")  # not mounted: no error
