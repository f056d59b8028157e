"""Checks of the snapshotter on the kernel's dm-thin, inside a guest; see `guest_checks`."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cowfs.cli.app import run
from cowfs.containerd.grpc import Code
from cowfs.containerd.messages import ACTIVE
from cowfs.containerd.snapshots import MAX_SIZE
from cowfs_dmthin.abi import TargetLine
from cowfs_dmthin.loop import open_backing
from tests.containerd.grpc_client import CallFailed, GrpcClient, connected
from tests.uml.guest_checks import CONTROL, Checks, run_checks, wait_until
from tests.uml.guest_commands import Cowfs

check = Checks()
MIB = 1 << 20
DISK_BYTES = 256 * MIB
PATIENT = ("--answer-seconds", "60")  # a guest is slow, and may have a machine that is busy
OPTIONS = ("dm.loopdatasize=256M", "dm.loopmetadatasize=4M", "dm.basesize=32M", "dm.min_free_space=0%")


class Server:
    """A snapshotter in a process that is forked from this one: in a guest that is sooner ready than a new one."""

    def __init__(self, folder: Path, *words: str, options: Sequence[str] = OPTIONS) -> None:
        self.home = folder / "home"
        self.socket = folder / "s"
        self._log = folder / "log"
        self._words = words
        self._options = options
        self.pid = 0

    def start(self) -> None:
        options = [word for option in self._options for word in ("--storage-opt", option)]
        words = ["--home", str(self.home), "--backend", "dmthin", *options]
        words += ["snapshotter", "--socket", str(self.socket), *PATIENT, *self._words]
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(fd, 1)
                os.dup2(fd, 2)
                status = run(words)
            finally:
                os._exit(status)

    def connected(self) -> GrpcClient:
        return connected(self.socket, self._require_alive)

    def _require_alive(self) -> None:
        assert os.waitpid(self.pid, os.WNOHANG)[0] == 0, self._log.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        os.kill(self.pid, number)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    @contextlib.contextmanager
    def running(self) -> Iterator[GrpcClient]:
        self.start()
        try:
            with self.connected() as client:
                yield client
        except BaseException:
            print(self._log.read_text(), file=sys.stderr)
            raise
        finally:
            assert self.stop() == 0, self._log.read_text()


@contextlib.contextmanager
def mounted(answer: Any, target: Path) -> Iterator[Path]:
    """What a call answered, mounted as containerd does."""
    (mount,) = answer.mounts
    target.mkdir(exist_ok=True)
    options = ",".join(mount.options) or "rw"
    subprocess.run(["mount", "-t", mount.type, "-o", options, mount.source, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


@contextlib.contextmanager
def container(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes to its root until there is a file `stop`."""
    script = "n=0; while [ ! -e stop ]; do n=$((n+1)); echo $n > count; done; echo $n > end"
    with subprocess.Popen(["sh", "-ec", script], cwd=root) as process:
        try:
            yield process
        finally:
            process.kill()


def names(directory: Path) -> set[str]:
    return set(os.listdir(directory)) - {"lost+found"}


def require_nothing_left(server: Server) -> None:
    cowfs = Cowfs(server.home)
    assert "snapshot-" not in cowfs("list").out
    assert cowfs("pool", "check").out.startswith("clean")


@check
def the_kernel_keeps_to_the_limit_of_a_snapshot(folder: Path) -> None:
    """Of any writer; what is made of its commit has none."""
    server = Server(folder)
    with server.running() as client:
        for key in ("limited", "other"):
            labels = {MAX_SIZE: str(8 * MIB)} if key == "limited" else {}
            (mount,) = client.call("Prepare", key=key, labels=labels).mounts
            root = Path(mount.source)
            done = subprocess.run(
                ["dd", "if=/dev/zero", f"of={root}/file", "bs=1M", "count=16"], capture_output=True, check=False
            )
            assert (done.returncode != 0) == (key == "limited"), done
            size = (root / "file").stat().st_size
            assert (6 * MIB < size <= 8 * MIB) if key == "limited" else (size == 16 * MIB), size
        client.call("Commit", key="limited", name="base")
        (mount,) = client.call("Prepare", key="child", parent="base").mounts
        (Path(mount.source) / "more").write_bytes(b"x" * 12 * MIB)
        for key in ("child", "other", "base"):
            client.call("Remove", key=key)
    require_nothing_left(server)


@check
def each_snapshot_is_a_block_device(folder: Path) -> None:
    """Its files at the root of its file system; committed while it is mounted, and gone with its last user."""
    server = Server(folder, "--block-devices")
    with server.running() as client:
        prepared = client.call("Prepare", key="a")
        (mount,) = prepared.mounts
        assert (mount.type, list(mount.options)) == ("ext4", [])
        assert mount.source.startswith("/dev/mapper/")
        with mounted(prepared, folder / "a") as root:
            (root / "file").write_text("one")
            (root / "rootfs").mkdir()  # a name like any other
            client.call("Commit", key="a", name="base")
            (root / "late").write_text("not in the commit")
            usage = client.call("Usage", key="base")
            assert usage.inodes == 2, usage
            view = client.call("View", key="v", parent="base")
            assert list(view.mounts[0].options) == ["ro"]
            with mounted(view, folder / "v") as seen:
                assert names(seen) == {"file", "rootfs"}
            with mounted(client.call("Prepare", key="b", parent="base"), folder / "b") as child:
                (child / "more").write_text("two")
                assert client.call("Mounts", key="b").mounts[0].source != mount.source
            assert client.call("Usage", key="b").inodes == 1
            limited = client.call("Prepare", key="c", parent="base", labels={MAX_SIZE: str(4 * MIB)})
            with mounted(limited, folder / "c") as child, contextlib.suppress(OSError):
                (child / "big").write_bytes(b"x" * 8 * MIB)
                os.sync()
                raise AssertionError("8 MiB in 4 were expected to be too much")
        for key in ("v", "b", "c", "base"):
            client.call("Remove", key=key)
        cowfs = Cowfs(server.home)
        wait_until(lambda: "snapshot-" not in cowfs("list").out)  # that of the commit was mounted meanwhile
    require_nothing_left(server)


@check
def a_container_goes_on_while_the_snapshotter_is_killed_or_ends(folder: Path) -> None:
    end_and_take_over(Server(folder, "--block-devices"), folder)


@check
def a_container_in_a_directory_goes_on_while_the_snapshotter_is_killed_or_ends(folder: Path) -> None:
    end_and_take_over(Server(folder), folder)


def end_and_take_over(server: Server, folder: Path) -> None:
    """Another snapshotter has the same mounts and files, and changes since; removed, all of it goes."""
    server.start()
    with server.connected() as client:
        prepared = client.call("Prepare", key="box")
    with mounted(prepared, folder / "box") as root, container(root) as process:
        wait_until((root / "count").exists)
        for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
            assert server.stop(number) == status
            (root / number.name).write_text("while there is no snapshotter")
            server.start()
            with server.connected() as client:
                assert list(client.call("Mounts", key="box").mounts) == list(prepared.mounts)
        with server.connected() as client:
            (root / "stop").touch()
            assert process.wait(60) == 0
            client.call("Commit", key="box", name="base")
    with server.connected() as client:
        with mounted(client.call("View", key="v", parent="base"), folder / "v") as seen:
            assert names(seen) == {"count", "stop", "end", "SIGKILL", "SIGTERM"}
        client.call("Remove", key="v")
        client.call("Remove", key="base")
        cowfs = Cowfs(server.home)
        client.call("Cleanup")  # tries again what was in use
        wait_until(lambda: "snapshot-" not in cowfs("list").out)
    assert server.stop() == 0
    require_nothing_left(server)


@check
def a_commit_does_not_wait_for_what_the_kernel_writes(folder: Path) -> None:
    """On a disk that takes a minute for each write: it is refused, and the next one, when that is done, has all."""
    with slow_disk(folder / "disk") as (disk, delay):
        server = Server(folder, options=(f"dm.datadev={disk}", *OPTIONS[1:]))
        commit_on_a_slow_disk(server, folder, delay)
        require_nothing_left(server)


@contextlib.contextmanager
def slow_disk(path: Path) -> Iterator[tuple[str, Callable[[int], None]]]:
    """A disk by the path of its node, and what has each write wait so many milliseconds from then on."""
    path.touch()
    os.truncate(path, DISK_BYTES)
    backing = open_backing(str(path), "data")

    def delay(milliseconds: int) -> None:
        at_once = f"{backing.table_name} 0 0"
        words = f"{at_once} {backing.table_name} 0 {milliseconds} {at_once}"
        CONTROL.load("slow", TargetLine(0, DISK_BYTES // 512, "delay", words))
        CONTROL.suspend("slow", flush=False, freeze=False)
        CONTROL.resume("slow")

    try:
        number = CONTROL.create("slow")
        delay(0)
        os.mknod(path.with_name("node"), stat.S_IFBLK | 0o600, number)
        yield str(path.with_name("node")), delay
    finally:
        CONTROL.remove_if_there("slow")
        backing.close()


def commit_on_a_slow_disk(server: Server, folder: Path, delay: Callable[[int], None]) -> None:
    with server.running() as client:
        cowfs = Cowfs(server.home)
        for key in ("a", "gone"):
            (mount,) = client.call("Prepare", key=key).mounts
            (Path(mount.source) / "file").write_bytes(bytes(range(256)) * 4096)
        delay(60_000)
        with refused_with(Code.UNAVAILABLE, "commit it again in a moment"):
            client.call("Commit", key="a", name="base")
        client.call("Remove", key="gone")  # the end of its mount writes what it has
        assert sorted(info.name for answer in client.answers("List") for info in answer.info) == ["a"]
        assert client.call("Stat", key="a").info.kind == ACTIVE
        delay(0)
        client.call("Commit", key="a", name="base")
        with mounted(client.call("View", key="v", parent="base"), folder / "v") as seen:
            assert (seen / "file").read_bytes() == bytes(range(256)) * 4096
        client.call("Remove", key="v")
        client.call("Remove", key="base")
        client.call("Cleanup")
        wait_until(lambda: "snapshot-" not in cowfs("list").out)


@contextlib.contextmanager
def refused_with(code: Code, text: str) -> Iterator[None]:
    """A call that is to fail so."""
    try:
        yield
    except CallFailed as error:
        if error.code is not code or text not in error.message:
            raise
    else:
        raise AssertionError(f"{code.name} was expected")


@check
def a_home_has_snapshots_of_one_kind(folder: Path) -> None:
    server = Server(folder)
    with server.running() as client:
        client.call("Prepare", key="a")
    other = Server(folder, "--block-devices")
    other.start()
    assert os.waitstatus_to_exitcode(os.waitpid(other.pid, 0)[1]) == 5
    assert "snapshot a of" in (folder / "log").read_text()
    assert "is a directory; for block devices, name another home" in (folder / "log").read_text()
    with server.running() as client:
        client.call("Remove", key="a")


if __name__ == "__main__":
    run_checks(check, sys.argv[1:])
