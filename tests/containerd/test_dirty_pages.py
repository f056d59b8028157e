"""Commits of what programs have changed in memory, where the disk or the pool lets the kernel not write it soon."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowfs.containerd.grpc import Code
from tests.containerd.grpc_client import CallFailed, GrpcClient
from tests.containerd.server import Server, names, path_of

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20
# Changes a file in memory at each line that it reads: all of it, which no call of write(2) waits for.
WRITER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, int(sys.argv[2]))
memory = mmap.mmap(fd, int(sys.argv[2]))
print("open", flush=True)
for line in sys.stdin:
    memory[:] = line[:1].encode() * len(memory)
    print("changed", flush=True)
"""
NO_MINIMUM = "dm.min_free_space=0%"


class Writer:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def fill_with(self, letter: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{letter}\n")
        self._process.stdin.flush()
        assert self.said() == "changed\n"


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def writer(server: Server, path: Path, size_bytes: int) -> Iterator[Writer]:
    words = ["python", "-c", WRITER, str(path), str(size_bytes)]
    with server.account.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        made = Writer(process)
        assert made.said() == "open\n"
        try:
            yield made
        finally:
            process.kill()


def require_unavailable(client: GrpcClient, key: str, name: str) -> None:
    with pytest.raises(CallFailed, match="commit it again in a moment") as caught:
        client.call("Commit", key=key, name=name)
    assert caught.value.code is Code.UNAVAILABLE


def require_content(server: Server, client: GrpcClient, name: str, letter: str, size_bytes: int) -> None:
    """A commit has a file that is full of one letter."""
    view = path_of(client.call("View", key=f"view {name}", parent=name), "ro")
    count = server.account.run(["sh", "-ec", f'tr -d {letter} < "$1/file" | wc -c; wc -c < "$1/file"', "sh", view])
    assert count.stdout.split() == ["0", str(size_bytes)]


def commit(client: GrpcClient, key: str, name: str) -> None:
    """Commit it as soon as the kernel has written what programs changed in memory."""
    while name not in names(client):
        try:
            client.call("Commit", key=key, name=name)
        except CallFailed as error:
            assert error.code is Code.UNAVAILABLE, error  # noqa: PT017


def test_a_commit_waits_a_moment_for_a_slow_disk(server: Server) -> None:
    """Each write of the data takes a fifth of a second, and there are dozens: it is refused, and others are served."""
    size_bytes = 24 * MIB
    with server.start("dm.loopdatasize=256M", "dm.loopmetadatasize=4M", "dm.basesize=64M") as client:
        root = path_of(client.call("Prepare", key="box"))
        with writer(server, root / "file", size_bytes) as program:
            server.cowfs("faults", "add", root.parent.name, "delay", "write", "--on", "device", "--seconds", "0.2")
            program.fill_with("a")
            require_unavailable(client, "box", "image")
            client.call("Prepare", key="other")
            client.call("Remove", key="other")
            assert names(client) == ["box"]
            require_unavailable(client, "box", "image")
            server.cowfs("faults", "clear")
            commit(client, "box", "image")
            require_content(server, client, "image", "a", size_bytes)
    assert server.stop() == 0, server.log()
    assert server.cowfs("pool", "check").startswith("clean")


def test_a_commit_does_not_wait_for_space(server: Server) -> None:
    """The pool is full and lets writes wait, for ever: changes in memory are committed when there is space again."""
    size_bytes = 24 * MIB
    sizes = ("dm.loopdatasize=16M", "dm.loopmetadatasize=2M", "dm.basesize=64M", NO_MINIMUM)
    with server.start(*sizes) as client:
        root = path_of(client.call("Prepare", key="box"))  # from then on the home is made
        server.cowfs("pool", "set", "--no-space", "queue", "--no-space-timeout", "0")
        stuck = path_of(client.call("Prepare", key="stuck"))
        other = path_of(client.call("Prepare", key="other")).parent.name
        with writer(server, root / "file", size_bytes) as program, writer(server, stuck / "file", MIB) as other_program:
            program.fill_with("a")
            require_unavailable(client, "box", "first")
            other_program.fill_with("a")
            assert names(client) == ["box", "other", "stuck"]
            client.call("Stat", key="box")
            assert path_of(client.call("Mounts", key="box")) == root
            require_unavailable(client, "box", "first")
            client.call("Remove", key="stuck")
            client.call("Remove", key="other")
            wait_until(lambda: other not in server.cowfs("list"))
            server.cowfs("pool", "resize", "--data-size", "128M")
            commit(client, "box", "first")
            require_content(server, client, "first", "a", size_bytes)
    assert server.stop() == 0, server.log()
    assert server.cowfs("pool", "check").startswith("clean")
