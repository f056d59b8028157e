"""`cowfs snapshotter` as a process with its home, and short words for its calls."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cowfs.containerd.grpc import Code
from tests.containerd.grpc_client import CallFailed, GrpcClient, connected
from tests.kit.containerd_engine import Containerd, Pods

if TYPE_CHECKING:
    from tests.conftest import Account

BLOCK_BYTES = 64 << 10
PATIENT = ["--answer-seconds", "60"]  # a machine that is busy is no slow disk
OPTIONS = ["dm.loopdatasize=256M", "dm.loopmetadatasize=4M", "dm.basesize=32M"]


class Server:
    """The process, its socket and its home; one account's. `words` are options of `snapshotter`."""

    def __init__(self, account: Account, *words: str | Path) -> None:
        self.words = words
        self.account = account
        self.home = account.directory / "home"
        self.socket = account.directory / "snapshotter.sock"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> GrpcClient:
        """Start it; `options` are storage options in place of the usual ones."""
        words = [word for option in options or OPTIONS for word in ("--storage-opt", option)]
        command = ["cowfs", "--home", self.home, *words, "snapshotter", "--socket", self.socket, *PATIENT, *self.words]
        with (self.account.directory / "log").open("a") as log:
            self.process = self.account.start(command, stdout=log, stderr=log)
        return connected(self.socket, self._require_alive)

    def _require_alive(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, self.log()

    def log(self) -> str:
        return (self.account.directory / "log").read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def cowfs(self, *words: str) -> str:
        return self.account.run(["cowfs", "--home", self.home, *words]).stdout


@contextmanager
def with_containerd(
    account: Account, directory: Path, *options: str, pause_image: str | None = None
) -> Iterator[tuple[Containerd, Server]]:
    """containerd and a snapshotter, which ask each other; at the end it ends well, and nothing is left in its home.

    Args:
        directory: its path shall be short, since sockets are made in it.
        options: as those of `Server.start`.
        pause_image: of pods; none are served without it.
    """
    pods = None if pause_image is None else Pods(pause_image, account.directory / "home")
    engine = Containerd(directory / "e", directory / "s", pods=pods)
    server = Server(account, "--containerd", engine.socket)
    server.socket = directory / "s"
    try:
        with server.start(*options), engine:
            yield engine, server
        assert server.stop() == 0, server.log()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
    assert "snapshot-" not in server.cowfs("list")
    assert server.cowfs("pool", "check").startswith("clean")


def path_of(answer: Any, access: str = "rw") -> Path:
    (mount,) = answer.mounts
    assert (mount.type, list(mount.options)) == ("bind", ["rbind", access])
    return Path(mount.source)


def refused(client: GrpcClient, method: str, **fields: Any) -> Code:
    try:
        client.call(method, **fields)
    except CallFailed as caught:
        error = caught
    else:
        raise AssertionError(f"{method} was not refused")
    assert "\n" not in error.message
    return error.code


def names(client: GrpcClient, *filters: str) -> list[str]:
    return [info.name for answer in client.answers("List", filters=list(filters)) for info in answer.info]
