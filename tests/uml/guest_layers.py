"""Checks of layers that the kernel mounts, inside a guest: by commands, and in process; see `guest_checks`."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cowfs
from cowfs.errors import DeviceBusy, FilesystemError, MountError
from cowfs.ext4.files import acl
from cowfs.home.kernel import layers as kernel_layers
from cowfs.home.kernel.layers import KernelLayers
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec, Make
from cowfs.layers.archive import write_archive
from cowfs.layers.driver import LayerDriver
from cowfs.layers.roots import find_root
from cowfs.mounts.mounted_tree import MountedTree
from cowfs.mounts.mountinfo import Mount, mount_at
from cowfs.steps import finish, pieces_of
from cowfs.testing.layers import CASES
from cowfs.testing.layers import check as check_case
from cowfs.testing.layers.homes import served
from cowfs.volumes import Volumes
from tests.kit.standby import fork_servers_from_here
from tests.uml.guest_checks import Checks, expected, run_checks, somebody_has_open, wait_until
from tests.uml.guest_commands import Cowfs
from tests.uml.guest_homes import loop_device, loops, shell

check = Checks()
MIB = 1 << 20
SIZES = {"ext4": "64M", "xfs": "320M"}
FILESYSTEMS = tuple(SIZES)


class Commands(Cowfs):
    """`cowfs` with the storage options of a home of one file system."""

    def __init__(self, home: Path, *options: str) -> None:
        super().__init__(home)
        object.__setattr__(self, "options", [word for option in options for word in ("--storage-opt", option)])

    def try_(self, *words: object) -> Any:
        return super().try_(*self.options, *words)  # type: ignore[attr-defined]

    def get(self, layer_id: str, *words: str) -> Path:
        return Path(self("layer", "get", layer_id, *words).out.strip())

    def apply(self, layer_id: str, data: io.BytesIO) -> None:
        with cowfs.open_home(self.home, backend=self.backend) as home:
            home.layers.apply(layer_id, data)


def storage_options(filesystem: str, *more: str) -> tuple[str, ...]:
    sizes = ("dm.loopdatasize=2G", "dm.loopmetadatasize=8M", f"dm.basesize={SIZES[filesystem]}", "dm.min_free_space=0%")
    return (f"dm.fs={filesystem}", *sizes, *more)


def mounted(path: Path) -> Mount:
    found = mount_at(path.parent)
    assert found is not None, path
    return found


@contextlib.contextmanager
def opened(folder: Path, filesystem: str, *options: str) -> Iterator[tuple[OpenHome, LayerDriver]]:
    words = tuple(storage_options(filesystem, *options))
    spec = HomeSpec(folder / "home", "dmthin", durable=False, storage_options=words, make=Make.WHERE_ABSENT)
    with open_here(spec) as home:
        yield home, home.driver


@contextlib.contextmanager
def failing(module: ModuleType, function: str, error: Exception) -> Iterator[None]:
    """A function of a module raises an error, until the block ends."""

    def fail(*_: object) -> None:
        raise error

    original = getattr(module, function)
    setattr(module, function, fail)
    try:
        yield
    finally:
        setattr(module, function, original)


def archive(**files: bytes) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            item = tarfile.TarInfo(name)
            item.size, item.mtime = len(content), 1_700_000_000
            tar.addfile(item, io.BytesIO(content))
    out.seek(0)
    return out


def changes(driver: LayerDriver, layer_id: str, parent: str | None) -> list[str]:
    return [f"{change.kind.letter} {change.path.decode()}" for change in finish(driver.changes(layer_id, parent))]


# --- through the command line


def look_at(path: Path, layer_id: str, filesystem: str) -> None:
    """A layer of a home with the mount options noatime and nodiratime."""
    mount = mounted(path)
    assert (mount.fstype, mount.source.startswith("/dev/")) == (filesystem, True), mount
    assert "noatime" in mount.options
    assert ("nouuid" in mount.super_options) == (filesystem == "xfs")
    facts = path.stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (0o755, 0, 0)
    assert (path.parent / "id").read_text() == layer_id
    assert stat.S_IMODE((path.parent / "id").stat().st_mode) == 0o600


@check
def layers_are_got_and_put(folder: Path) -> None:
    home = Commands(folder / "home", *storage_options("ext4", "dm.mountopt=noatime,nodiratime"))
    home("init")
    home("layer", "create", "one")
    path = home.get("one")
    assert path == folder / "home/mnt/one/rootfs"
    look_at(path, "one", "ext4")
    mount = mounted(path)
    (path / "file").write_text("through the kernel")
    assert home.get("one") == path
    # A child of a layer that is in use has what was written, without a sync.
    home("layer", "create", "two", "one")
    both = home.get("two")
    assert (both / "file").read_text() == "through the kernel"
    look_at(both, "two", "ext4")
    (both / "more").write_bytes(b"x" * 5000)
    assert home("layer", "changes", "two", "one").out == "A /more\n"
    assert home("layer", "size", "two", "one").out == "5000\n"
    home("layer", "put", "one")
    assert mounted(path) == mount
    home("layer", "put", "one")
    assert mount_at(path.parent) is None
    assert not path.parent.exists()
    home("layer", "put", "one")
    assert home("layer", "changes", "one").out == "A /file\n"
    # Mounts outlive a server that is killed, and are taken over.
    os.kill(home("--json", "status").json["holder_pid"], signal.SIGKILL)
    (both / "more").write_bytes(b"the kernel goes on")
    mount = mounted(both)
    assert home.get("two") == both
    assert mounted(both) == mount
    home("layer", "remove", "one")
    assert home("layer", "list").out == "two\n"
    # One that is ended unmounts everything.
    os.kill(home("--json", "status").json["holder_pid"], signal.SIGTERM)
    wait_until(lambda: mount_at(both.parent) is None)


@check
def fuse_shows_layers_where_it_is_asked_for(folder: Path) -> None:
    home = Commands(folder / "home", *storage_options("ext4", "cowfs.mount=fuse"))
    home("init")
    home("layer", "create", "one")
    path = home.get("one")
    found = mount_at(folder / "home/mnt")
    assert found is not None
    assert found.is_cowfs
    (path / "file").write_text("through FUSE")
    home("layer", "put", "one")
    by_kernel = Commands(folder / "home", *storage_options("ext4"))
    by_kernel.fails(
        2,
        "needs mounts by the kernel",
        words=("--storage-opt", "dm.fs=xfs", "--storage-opt", "cowfs.mount=fuse", "info"),
    )


@check
def pools_on_devices_by_storage_options(folder: Path) -> None:
    """The pool is on the two disks of the user, each time the options say so; nothing of it is in the home."""
    with loops(folder) as (data, metadata):
        own = (f"dm.datadev={data}", f"dm.metadatadev={metadata}", "dm.basesize=16M", "dm.min_free_space=0%")
        home = Commands(folder / "home", *own)
        home("init")
        assert not (folder / "home/devicemapper/data").exists()
        home("layer", "create", "one")
        home.apply("one", archive(file=b"on a disk"))
        info = home("--json", "info").json
        assert (info["data_file"], info["metadata_file"]) == (data, metadata), info
        assert not info["data_loop_file"], info
        assert home("layer", "changes", "one").out == "A /file\n"


@check
def a_data_device_alone_has_its_metadata_in_the_home(folder: Path) -> None:
    data = loop_device(folder / "disk", 96 * MIB)
    try:
        home = Commands(folder / "home", f"dm.datadev={data}", "dm.loopmetadatasize=4M", "dm.basesize=16M")
        home("init")
        home("layer", "create", "one")
        assert (folder / "home/devicemapper/metadata").stat().st_size == 4 * MIB
        assert not (folder / "home/devicemapper/data").exists()
        assert home("--json", "info").json["data_file"] == data
    finally:
        shell("losetup", "--detach", data)


@check
def a_pool_of_somebody_else_by_storage_options(folder: Path) -> None:
    with loops(folder) as (data, metadata):
        sectors = shell("blockdev", "--getsz", data)
        table = f"0 {sectors} thin-pool {metadata} {data} 128 0 1 skip_block_zeroing"
        shell("dmsetup", "create", "theirs", "--table", table)
        try:
            home = Commands(folder / "home", "dm.thinpooldev=/dev/mapper/theirs", "dm.basesize=16M")
            home("init")
            home("layer", "create", "one")
            home.apply("one", archive(file=b"in their pool"))
            assert home("--json", "info").json["pool_name"] == "theirs"
            assert home("layer", "changes", "one").out == "A /file\n"
            home("layer", "remove", "one")
            assert home("layer", "list").out == ""
        finally:
            shell("dmsetup", "remove", "--retry", "theirs")


@check
def the_plugin_has_the_kernel_mount_layers(folder: Path) -> None:
    (case,) = (case for case in CASES if case.number == "rule-4")
    check_case(case, served("dmthin"), os.fspath(folder))


# --- in process


def files_come_and_go(folder: Path, filesystem: str) -> None:
    """The same archives and changes, whatever the file system is, with the layers idle and in use."""
    with opened(folder, filesystem) as (host, driver):
        driver.create("low", None)
        assert finish(driver.apply("low", None, archive(a=b"one", b=b"two", c=b"three"))) == 11
        driver.create("idle", "low")
        driver.create("used", "low")
        path = Path(driver.get("used"))
        for layer_id in ("idle", "used"):
            finish(driver.apply(layer_id, "low", archive(**{".wh.a": b"", "b": b"changed", "d": b"new"})))
            assert changes(driver, layer_id, "low") == ["D /a", "C /b", "A /d"]
            assert finish(driver.diff_size(layer_id, "low")) == 10
        assert sorted(os.listdir(path)) == ["b", "c", "d"]
        assert b"".join(pieces_of(driver.diff("idle", "low"))) == b"".join(pieces_of(driver.diff("used", "low")))
        assert changes(driver, "idle", "used") == []
        # All or nothing, while idle.
        broken = archive(e=b"new").getvalue()[:700]
        with contextlib.suppress(OSError):
            finish(driver.apply("idle", "low", io.BytesIO(broken)))
            raise AssertionError("an archive that breaks off was applied")
        assert changes(driver, "idle", "used") == []
        # What is written while it is read does not matter: a snapshot is read.
        pieces = pieces_of(driver.diff("used", "low"))
        first = next(pieces)
        (path / "late").write_text("too late")
        rest = first + b"".join(pieces)
        with tarfile.open(fileobj=io.BytesIO(rest)) as tar:
            assert "late" not in tar.getnames()
        assert changes(driver, "used", "low") == ["D /a", "C /b", "A /d", "A /late"]
        assert sorted(record.name for record in host.devices.records()) == ["base", "idle", "low", "used"]
        driver.put("used")


@check
def files_of_ext4_come_and_go(folder: Path) -> None:
    files_come_and_go(folder, "ext4")


@check
def files_of_xfs_come_and_go(folder: Path) -> None:
    files_come_and_go(folder, "xfs")


def layers_grow(folder: Path, filesystem: str) -> None:
    size_bytes = 512 * MIB
    with opened(folder, filesystem) as (_host, driver):
        driver.create("low", None)
        finish(driver.apply("low", None, archive(a=b"kept")))
        driver.create("large", "low", {"size": str(size_bytes)})
        for layer_id, least, most in (("low", 0, 320 * MIB), ("large", 400 * MIB, size_bytes)):
            path = driver.get(layer_id)
            figures = os.statvfs(path)
            assert least < figures.f_blocks * figures.f_frsize <= most, (layer_id, figures)
            assert Path(path, "a").read_text() == "kept"
        assert changes(driver, "large", "low") == []
        driver.cleanup()
    with opened(folder, filesystem, f"dm.basesize={size_bytes}") as (_host, driver):
        driver.create("after", None)
        figures = os.statvfs(driver.get("after"))
        assert 400 * MIB < figures.f_blocks * figures.f_frsize <= size_bytes


@check
def ext4_layers_grow(folder: Path) -> None:
    layers_grow(folder, "ext4")


@check
def xfs_layers_grow(folder: Path) -> None:
    layers_grow(folder, "xfs")


@check
def two_snapshots_of_an_xfs_are_mounted_at_once(folder: Path) -> None:
    with opened(folder, "xfs", "dm.mountopt=noatime,nodiratime") as (_host, driver):
        driver.create("low", None)
        look_at(Path(driver.get("low")), "low", "xfs")
        driver.create("left", "low")
        driver.create("right", "low")
        paths = {layer_id: Path(driver.get(layer_id)) for layer_id in ("low", "left", "right")}
        for layer_id, path in paths.items():
            (path / "file").write_text(layer_id)
        assert {layer_id: (path / "file").read_text() for layer_id, path in paths.items()} == {
            layer_id: layer_id for layer_id in paths
        }
        assert len({path.stat().st_dev for path in paths.values()}) == 3


@check
def retries_of_an_xfs_are_limited(folder: Path) -> None:
    with opened(folder, "xfs", "dm.xfs_nospace_max_retries=3") as (host, driver):
        driver.create("one", None)
        path = Path(driver.get("one"))
        number = os.stat(path).st_dev
        name = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
        setting = Path("/sys/fs/xfs", name, "error/metadata/ENOSPC/max_retries")
        assert setting.read_text().strip() == "3"
        driver.put("one")
        # Where the kernel has no such setting nothing stays mounted.
        settings = host.settings
        assert settings is not None
        layers = KernelLayers(host.devices, host.volumes, settings)
        refusal = FilesystemError("not supported on this system", errno=errno.ENOENT)
        with (
            failing(kernel_layers, "limit_nospace_retries", refusal),
            expected(FilesystemError, errno.ENOENT),
        ):
            layers.mount("one", "", prepare=lambda tree: None, write_id=lambda tree: None)
        assert mount_at(path.parent) is None
        wait_until(lambda: not host.devices.active.open_nodes())


@check
def a_mount_label_reaches_the_kernel(folder: Path) -> None:
    """Where SELinux runs the mount has it; else the kernel refuses it, in words that show it."""
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    with opened(folder, "ext4", "dm.mountopt=noatime") as (host, driver):
        driver.create("one", None)
        if is_selinux_on():
            assert os.getxattr(driver.get("one", label), "security.selinux").rstrip(b"\0").decode() == label
            return
        with expected(MountError, errno.EINVAL, f'data: context="{label}": invalid argument; the kernel', "SELinux: "):
            driver.get("one", label)
        assert mount_at(folder / "home/mnt/one") is None
        wait_until(lambda: not host.devices.active.open_nodes())


def is_selinux_on() -> bool:
    return "selinuxfs" in Path("/proc/mounts").read_text()


@check
def a_removed_layer_gives_its_space_back(folder: Path) -> None:
    """On by default where the pool is in files of the home; and with deferred deletion, when it is put."""
    with opened(folder, "ext4") as (host, driver):
        data = folder / "home/devicemapper/data"

        def occupied() -> int:
            host.devices.pool.commit()
            return data.stat().st_blocks * 512

        for is_on in (True, False):
            host.devices.deletions.discards_removed = is_on
            driver.create("big", None)
            Path(driver.get("big"), "file").write_bytes(os.urandom(16 * MIB))
            os.sync()
            full = occupied()
            driver.remove("big")
            assert driver.exists("big")
            with expected(DeviceBusy, errno.EBUSY, "marked for deletion"):
                driver.create("child", "big")
            driver.put("big")
            assert not driver.exists("big")
            assert (full - occupied() > 12 * MIB) == is_on


@check
def what_somebody_else_keeps_mounted_is_told(folder: Path) -> None:
    """Without deferred removal a put says that the device is still in use; with it, the kernel removes it."""
    never = ("dm.use_deferred_removal=false", "dm.use_deferred_deletion=false")
    with opened(folder, "ext4", *never) as (host, driver):
        driver.create("one", None)
        path = Path(driver.get("one"))
        (path / "file").write_text("open")
        with somebody_has_open(str(path / "file")):
            with expected(DeviceBusy, errno.EBUSY, "something else uses it"):
                driver.put("one")
            with expected(DeviceBusy, errno.EBUSY, "cannot be removed"):
                driver.remove("one")
            assert driver.exists("one")
        wait_until(lambda: not host.devices.active.open_nodes())
        driver.remove("one")
    with opened(folder, "ext4") as (host, driver):
        driver.create("one", None)
        path = Path(driver.get("one"))
        (path / "file").write_text("open")
        with somebody_has_open(str(path / "file")):
            driver.put("one")
            driver.remove("one")
            assert driver.exists("one")
            host.devices.deletions.retry()
            assert driver.exists("one")
        wait_until(lambda: not host.devices.active.open_nodes())
        host.devices.deletions.retry()
        wait_until(lambda: host.devices.deletions.retry() == 0)
        assert not driver.exists("one")


@check
def something_else_at_a_mount_point_is_no_layer(folder: Path) -> None:
    with opened(folder, "ext4") as (_host, driver):
        driver.create("one", None)
        target = folder / "home/mnt/one"
        target.mkdir()
        shell("mount", "-t", "tmpfs", "none", target)
        for act in (driver.get, driver.put):
            with expected(MountError, errno.EIO, "something else is mounted there"):
                act("one")
        shell("umount", target)


@check
def the_loop_devices_are_told(folder: Path) -> None:
    with opened(folder, "ext4") as (_host, driver):
        items = dict(driver.status())
        assert items["Data loop file"] == str(folder / "home/devicemapper/data")
        assert items["Metadata loop file"] == str(folder / "home/devicemapper/metadata")
        assert items["Data file"].startswith("/dev/loop")
        assert (
            Path("/sys/block", items["Data file"].removeprefix("/dev/"), "loop/backing_file").read_text().strip()
            == (items["Data loop file"])
        )
        names = list(items)
        assert names[5:9] == ["Data file", "Metadata file", "Data loop file", "Metadata loop file"]


@check
def a_mounted_tree_is_a_tree_as_the_engine_has_it(folder: Path) -> None:
    """What the kernel shows of a layer and what the engine reads of it give the same archive, bit for bit."""
    with opened(folder, "ext4") as (host, driver):
        driver.create("rich", None)
        path = Path(driver.get("rich"))
        script = """
            mkdir -p d/e; echo x > d/f; ln d/f d/g; ln -s f d/s; mkfifo p; mknod c c 1 3; chmod 4711 d/f
            truncate -s 3M hole; printf data | dd of=hole bs=1 seek=1M conv=notrunc status=none; touch -d @1.5 d/f
        """
        subprocess.run(["sh", "-e", "-c", script], cwd=path, check=True)
        os.setxattr(path / "d/f", "user.key", b"\0value")
        os.setxattr(path / "d/s", "trusted.link", b"of a link", follow_symlinks=False)
        os.chown(path / "d/s", 1, 2, follow_symlinks=False)
        # What is in a directory does not inherit from it when it comes from an archive.
        inherited = acl.pack(acl.from_text("user::rwx,user:1:r-x,group::r-x,mask::r-x,other::---"))
        os.setxattr(path / "d", acl.DEFAULT, inherited)
        tree = MountedTree(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY))
        with contextlib.closing(tree):
            through_kernel = b"".join(write_archive(find_root(tree), None))
        assert through_kernel == b"".join(pieces_of(driver.diff("rich", None)))
        driver.create("again", None)
        assert isinstance(host.volumes, Volumes)
        target = Path(driver.get("again"))
        finish(driver.apply("again", None, io.BytesIO(through_kernel)))
        assert os.getxattr(target / "d", acl.DEFAULT) == inherited
        assert os.listxattr(target / "d/e") == []
        assert changes(driver, "again", "rich") == []
        assert os.stat(target / "d/f").st_mtime_ns == 1_500_000_000


if __name__ == "__main__":
    fork_servers_from_here()
    run_checks(check, sys.argv[1:])
