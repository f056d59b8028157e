"""Checks of the snapshotter on a pool of the kernel that is full or cannot be changed, and beside other mounts.

Inside a guest; see `guest_checks`. The calls of the server wait up to a minute, so a check fails where one waits for
what never comes.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cowfs.containerd.grpc import Code
from cowfs.containerd.messages import ACTIVE
from cowfs_dmthin.abi import TargetLine
from cowfs_dmthin.control import ControlError
from cowfs_dmthin.loop import open_backing
from cowfs_dmthin.space_guard import TIMEOUT_PATH
from tests.containerd.grpc_client import CallFailed, GrpcClient
from tests.uml.guest_checks import CONTROL, Checks, run_checks, wait_until
from tests.uml.guest_commands import Cowfs
from tests.uml.guest_snapshotter import OPTIONS, Server, mounted, names, refused_with, require_nothing_left, slow_disk

check = Checks()
MIB = 1 << 20
FULL = ("dm.loopdatasize=24M", "dm.loopmetadatasize=2M", "dm.basesize=64M", "dm.min_free_space=0%")
METADATA_BYTES = 4 * MIB
MANY_THINS = 1_000_000  # ids that no device has


def prepared(client: GrpcClient) -> Path:
    """A committed snapshot and three active ones of it; where the files of one are."""
    client.call("Prepare", key="one")
    client.call("Commit", key="one", name="image")
    client.call("Usage", key="image")  # is known from then on
    for key in ("box", "other", "old"):
        client.call("Prepare", key=key, parent="image")
    return root_of(client, "box")


def root_of(client: GrpcClient, key: str) -> Path:
    (mount,) = client.call("Mounts", key=key).mounts
    return Path(mount.source)


def keys(client: GrpcClient) -> list[str]:
    return sorted(info.name for answer in client.answers("List") for info in answer.info)


def pool_status() -> str:
    (name,) = (name for name in CONTROL.devices() if name.endswith("-pool"))
    return CONTROL.status(name, flush=False)[0].parameters


def require_known(client: GrpcClient, root: Path) -> None:
    """What needs no pool is answered, and done."""
    assert client.call("Stat", key="box").info.kind == ACTIVE
    assert root_of(client, "box") == root
    assert client.call("Usage", key="image").inodes == 0
    info = {"name": "box", "labels": {"c": "d"}}
    client.call("Update", info=info, update_mask={"paths": ["labels"]})
    client.call("Remove", key="old")
    client.call("Cleanup")
    assert keys(client) == ["box", "image", "other"]


def require_usable(server: Server, client: GrpcClient) -> None:
    """The pool can be changed again: each snapshot is there, and so is all that is asked for; then all is removed."""
    assert dict(client.call("Stat", key="box").info.labels) == {"c": "d"}
    commit(client, "other", "image 2")
    client.call("View", key="view", parent="image 2")
    client.call("Prepare", key="new", parent="image 2")
    remove_all(server, client, "new", "view", "image 2", "box", "image")


def commit(client: GrpcClient, key: str, name: str) -> None:
    """Commit it as soon as the kernel has written what had to wait."""

    def is_committed() -> bool:
        try:
            client.call("Commit", key=key, name=name)
        except CallFailed as error:
            assert error.code is Code.UNAVAILABLE, error  # noqa: PT017
            return False
        return True

    wait_until(is_committed)


def remove_all(server: Server, client: GrpcClient, *names_: str) -> None:
    for name in names_:
        client.call("Remove", key=name)
    assert keys(client) == []
    client.call("Cleanup")
    cowfs = Cowfs(server.home)
    wait_until(lambda: "snapshot-" not in cowfs("list").out)


@check
def a_full_pool_that_refuses_writes(folder: Path) -> None:
    """Nothing can be mounted that was not, as a mount writes; what was is committed where all of it was written."""
    server = Server(folder, options=FULL)
    with server.running() as client:
        root = prepared(client)
        cowfs = Cowfs(server.home)
        cowfs("pool", "set", "--no-space", "error")
        (root / "big").write_bytes(os.urandom(40 * MIB))
        subprocess.run(["sync", "-f", root], check=False)
        wait_until(lambda: "out_of_data_space" in pool_status())
        for method in ("Prepare", "View"):
            with refused_with(Code.RESOURCE_EXHAUSTED, "no data space left"):
                client.call(method, key="new", parent="image")
        require_known(client, root)
        cowfs("pool", "resize", "--data-size", "128M")
        require_usable(server, client)
    require_nothing_left(server)


@check
def a_full_pool_that_lets_writes_wait(folder: Path) -> None:
    """For ever: no call waits with them, and the command that makes the pool larger comes through."""
    with no_space_timeout(0):
        server = Server(folder, options=FULL)
        with server.running() as client:
            client.call("Prepare", key="stuck")
            root = prepared(client)
            (root / "big").write_bytes(os.urandom(40 * MIB))
            sync = subprocess.Popen(["sync", "-f", root])  # the kernel writes, and this waits with it
            wait_until(lambda: "out_of_data_space" in pool_status())
            for method in ("Prepare", "View"):
                with refused_with(Code.RESOURCE_EXHAUSTED, "writes wait there for space, and so would the mount"):
                    client.call(method, key="new", parent="image")
            for _ in range(3):
                with refused_with(Code.UNAVAILABLE, "commit it again in a moment"):
                    client.call("Commit", key="box", name="full")
            (root_of(client, "stuck") / "big").write_bytes(os.urandom(4 * MIB))
            client.call("Remove", key="stuck")  # the end of its mount would write that
            gone = root_of(client, "old").parent.name
            require_known(client, root)
            cowfs = Cowfs(server.home)
            wait_until(lambda: gone not in cowfs("list").out)
            cowfs("pool", "resize", "--data-size", "128M")
            assert sync.wait(60) == 0
            require_usable(server, client)
        require_nothing_left(server)


@contextlib.contextmanager
def no_space_timeout(seconds: int) -> Iterator[None]:
    path = Path(TIMEOUT_PATH)
    before = path.read_text()
    path.write_text(str(seconds))
    try:
        yield
    finally:
        path.write_text(before)


@check
def a_pool_without_metadata_space(folder: Path) -> None:
    server = Server(folder, options=("dm.loopdatasize=256M", "dm.loopmetadatasize=2M", "dm.basesize=32M"))
    with server.running() as client:
        root = prepared(client)
        (pool,) = (name for name in CONTROL.devices() if name.endswith("-pool"))
        with contextlib.suppress(ControlError):
            for number in range(1000):  # each takes a block of metadata
                CONTROL.message(pool, f"create_thin {MANY_THINS + number}")
        for method, fields in (("Prepare", {"parent": "image"}), ("Prepare", {}), ("Commit", {"name": "full"})):
            with refused_with(Code.RESOURCE_EXHAUSTED, "metadata space"):
                client.call(method, key="box" if method == "Commit" else "new", **fields)
        require_known(client, root)
        Cowfs(server.home)("pool", "resize", "--metadata-size", "8M")
        require_usable(server, client)
    require_nothing_left(server)


@check
def a_pool_that_turned_read_only(folder: Path) -> None:
    """Its metadata could not be written. Repaired, the pool has each snapshot, and no device without one."""
    with disk_that_fails(folder / "disk", METADATA_BYTES) as (metadata, fail), own_disk(folder / "data") as data:
        server = Server(folder, options=(f"dm.datadev={data}", f"dm.metadatadev={metadata}", "dm.basesize=32M"))
        with server.running() as client:
            root = prepared(client)
            fail(True)
            for _ in range(2):  # the first one finds out
                with refused_with(Code.UNAVAILABLE, "needs a check"):
                    client.call("Prepare", key="new", parent="image")
            with refused_with(Code.UNAVAILABLE, "needs a check"):
                client.call("View", key="new", parent="image")
            with refused_with(Code.UNAVAILABLE, "needs a check"):
                client.call("Commit", key="box", name="full")
            require_known(client, root)
            fail(False)  # so that the metadata says that it needs a check
        with server.running() as client:  # what is there can be read
            with refused_with(Code.UNAVAILABLE, "needs a check"):
                client.call("Prepare", key="new", parent="image")
            (mount,) = client.call("View", key="view", parent="image").mounts
            assert names(Path(mount.source)) == set()
            client.call("Remove", key="view")
            assert keys(client) == ["box", "image", "other"]
        Cowfs(server.home)("pool", "check", "--repair")
        with server.running() as client:
            require_usable(server, client)
        require_nothing_left(server)


@contextlib.contextmanager
def own_disk(path: Path) -> Iterator[str]:
    """The path of a node."""
    path.touch()
    os.truncate(path, 256 * MIB)
    backing = open_backing(str(path), "data")
    try:
        major, minor = map(int, backing.table_name.split(":"))
        os.mknod(path.with_name(f"{path.name}-node"), stat.S_IFBLK | 0o600, os.makedev(major, minor))
        yield str(path.with_name(f"{path.name}-node"))
    finally:
        backing.close()


@contextlib.contextmanager
def disk_that_fails(path: Path, size_bytes: int) -> Iterator[tuple[str, Callable[[bool], None]]]:
    """A disk by the path of its node, and what has its writes fail from then on, or not any more."""
    path.touch()
    os.truncate(path, size_bytes)
    backing = open_backing(str(path), "metadata")

    def fail(is_failing: bool) -> None:
        target = "flakey" if is_failing else "linear"
        words = f"{backing.table_name} 0" + (" 0 1 1 error_writes" if is_failing else "")
        CONTROL.load("failing", TargetLine(0, size_bytes // 512, target, words))
        CONTROL.suspend("failing", flush=False, freeze=False)
        CONTROL.resume("failing")

    try:
        number = CONTROL.create("failing")
        fail(False)
        os.mknod(path.with_name("failing-node"), stat.S_IFBLK | 0o600, number)
        yield str(path.with_name("failing-node")), fail
    finally:
        CONTROL.remove_if_there("failing")
        backing.close()


# ---------------------------------------------------------------- mounted where the snapshotter does not see it


@contextlib.contextmanager
def mounted_elsewhere(answer: Any, script: str) -> Iterator[subprocess.Popen[str]]:
    """What a call answered, mounted at /run/elsewhere in another mount namespace, where a script has run."""
    (mount,) = answer.mounts
    Path("/run/elsewhere").mkdir(exist_ok=True)
    words = f"mount -t {mount.type} {mount.source} /run/elsewhere; cd /run/elsewhere; {script}; echo; read line"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        try:
            yield process
        finally:
            process.communicate("end\n")


def require_others_served(client: GrpcClient) -> None:
    client.call("Update", info={"name": "b", "labels": {"c": "d"}}, update_mask={"paths": ["labels"]})
    client.call("Prepare", key="c")
    client.call("Remove", key="c")


def require_committed(client: GrpcClient, folder: Path) -> None:
    with mounted(client.call("View", key="v", parent="image"), folder / "v") as seen:
        assert names(seen) == {"file"}
        assert (seen / "file").read_bytes() == b"x" * MIB
    client.call("Remove", key="v")


WRITE = "head -c 1M /dev/zero | tr '\\0' x > file"


@check
def a_device_that_is_mounted_elsewhere_on_a_slow_disk(folder: Path) -> None:
    """Its commit is refused while the kernel writes, which takes a minute, and every other call is served."""
    with slow_disk(folder / "disk") as (disk, delay):
        server = Server(folder, "--block-devices", options=(f"dm.datadev={disk}", *OPTIONS[1:]))
        with server.running() as client:
            client.call("Prepare", key="b")
            with mounted_elsewhere(client.call("Prepare", key="a"), WRITE):
                delay(60_000)
                for _ in range(2):
                    with refused_with(Code.UNAVAILABLE, "commit it again in a moment"):
                        client.call("Commit", key="a", name="image")
                info = {"name": "b", "labels": {"c": "d"}}
                client.call("Update", info=info, update_mask={"paths": ["labels"]})
                client.call("Remove", key="b")
                delay(0)
                commit(client, "a", "image")
                require_committed(client, folder)
            remove_all(server, client, "image")
        require_nothing_left(server)


@check
def a_device_that_is_frozen_elsewhere(folder: Path) -> None:
    """Frozen, its file system is whole on the device, and is committed so; it can be thawed afterwards."""
    server = Server(folder, "--block-devices")
    with server.running() as client:
        client.call("Prepare", key="b")
        with mounted_elsewhere(client.call("Prepare", key="a"), f"{WRITE}; fsfreeze -f /run/elsewhere") as process:
            client.call("Commit", key="a", name="image")
            require_others_served(client)
            require_committed(client, folder)
            thaw = "fsfreeze -u /run/elsewhere; echo late > /run/elsewhere/late"
            inside = ["nsenter", "--mount", "--target", str(process.pid), "sh", "-ec", thaw]
            subprocess.run(inside, check=True, timeout=60)
            require_committed(client, folder)
        remove_all(server, client, "b", "image")
    require_nothing_left(server)


if __name__ == "__main__":
    run_checks(check, sys.argv[1:])
