"""Docker 20.10, the last that has the devicemapper driver in Debian, as a peer and as a client of the plugin.

Its packages are unpacked beside everything else, as any user:

    python -m tests.kit.docker_engine      fetches and unpacks them below the virtual environment

The daemon runs inside User-Mode Linux, as the guest's root, without networks:

    with DockerEngine(directory, ["-s", "devicemapper"]) as engine:
        engine.docker("import", "image.tar", "image")
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from cowfs.debian_packages import unpack
from cowfs.errors import MissingRequirement

UNPACKED: Final = Path(sys.prefix) / "share" / "cowfs" / "docker"
PACKAGES: Final = ("docker.io", "containerd", "runc", "tini", "busybox-static", "libdevmapper1.02.1")
FETCH_COMMAND: Final = "python -m tests.kit.docker_engine"
BUSYBOX: Final = UNPACKED / "bin" / "busybox"
PLUGIN_SOCKET: Final = Path("/run/docker/plugins/cowfs.sock")
_API_SOCKET: Final = "/run/docker.sock"
_START_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1


def is_unpacked(root: Path = UNPACKED) -> bool:
    programs = ("usr/sbin/dockerd", "usr/bin/docker", "usr/bin/containerd", "usr/sbin/runc", "bin/busybox")
    return all(os.access(root / program, os.X_OK) for program in programs)


def require() -> None:
    """Raises MissingRequirement when the packages were not fetched."""
    if not is_unpacked():
        raise MissingRequirement("Docker 20.10 is not unpacked", remedy=FETCH_COMMAND)


def fetch() -> None:
    """Download the packages and unpack them; nothing when they are there."""
    if not is_unpacked():
        unpack(PACKAGES, UNPACKED, release="bookworm", is_whole=is_unpacked)


class DockerEngine:
    """A daemon in this machine, which is a guest of its own: it mounts what it needs and leaves it.

    Args:
        directory: for images and containers; `dockerd.log` in it is the daemon's log.
        arguments: of the daemon, such as the storage driver's.
    """

    def __init__(self, directory: Path, arguments: list[str]) -> None:
        self._directory = directory
        self._arguments = arguments
        self._daemon: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        paths = [str(UNPACKED / "usr/bin"), str(UNPACKED / "usr/sbin"), os.environ.get("PATH", os.defpath)]
        libraries = os.pathsep.join(str(path) for path in UNPACKED.glob("lib/*-linux-gnu"))
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join(paths),
            "LD_LIBRARY_PATH": libraries,
            "DOCKER_HOST": f"unix://{_API_SOCKET}",
            "DOCKER_BUILDKIT": "0",
            "HOME": "/run",
        }

    def start(self) -> None:
        """Start the daemon and wait until it answers. Raises RuntimeError with the end of its log."""
        _mount_control_groups()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log = (self._directory / "dockerd.log").open("ab")
        command = [
            *("dockerd", "--data-root", str(self._directory / "root"), "--exec-root", "/run/docker-exec"),
            *("--pidfile", "/run/docker.pid", "--host", self._environment["DOCKER_HOST"]),
            *("--iptables=false", "--bridge=none", *self._arguments),
        ]
        self._daemon = subprocess.Popen(command, env=self._environment, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd did not start: {self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End the daemon as a shutdown does."""
        if self._daemon is not None:
            self._daemon.terminate()
            try:
                self._daemon.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
            self._daemon = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def docker(self, *arguments: str, stdin: IO[bytes] | None = None) -> bytes:
        """Run a command of the client; what it prints. Raises RuntimeError with what it complains about."""
        result = self._run(*arguments, stdin=stdin)
        if result.returncode != 0:
            raise RuntimeError(f"docker {' '.join(arguments)}: {result.stderr.decode(errors='replace').strip()}")
        return result.stdout

    def request(self, method: str, path: str, body: bytes | IO[bytes] = b"", kind: str = "application/json") -> bytes:
        """A request of the daemon's API, without a client's start: for measuring. Raises RuntimeError."""
        connection = _UnixConnection("docker")
        try:
            connection.request(method, path, body, {"Content-Type": kind})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise RuntimeError(f"{method} {path}: {response.status} {answer.decode(errors='replace')}")
        return answer

    def log_tail(self) -> str:
        lines = (self._directory / "dockerd.log").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if "level=info" not in line)[-2000:]

    def _answers(self) -> bool:
        """Whether the daemon serves its socket. A start of the client would take a second of the guest's processor."""
        try:
            return bool(self.request("GET", "/_ping"))
        except (OSError, http.client.HTTPException, RuntimeError):
            return False

    def _run(self, *arguments: str, stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[bytes]:
        source = subprocess.DEVNULL if stdin is None else stdin
        return subprocess.run(
            ["docker", *arguments], env=self._environment, stdin=source, capture_output=True, check=False
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


@contextmanager
def storage_driver(name: str, directory: Path, options: Sequence[str]) -> Iterator[list[str]]:
    """The daemon's arguments for a storage driver, and beside it what that driver needs.

    Args:
        name: `devicemapper`, or `cowfs` for the plugin, whose home is in `directory`.
        options: storage options that both understand.

    Raises:
        RuntimeError: the plugin did not start, or did not end well; with the end of its log.
    """
    words = ["--storage-driver", name, *(word for option in options for word in ("--storage-opt", option))]
    if name != "cowfs":
        yield [*words, "--storage-opt", "dm.override_udev_sync_check=true"]
        return
    PLUGIN_SOCKET.parent.mkdir(parents=True, exist_ok=True)
    log_path = directory / "plugin.log"
    home = ["--home", str(directory / "home")]
    with log_path.open("ab") as log:
        command = [sys.executable, "-m", "cowfs", *home, "docker", "plugin", "--socket", str(PLUGIN_SOCKET)]
        plugin = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not PLUGIN_SOCKET.exists():
            if plugin.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the plugin did not start: {log_path.read_text()[-2000:]}")
            time.sleep(_POLL_SECONDS)
        yield ["--experimental", *words]
    finally:
        plugin.terminate()
        try:
            status = plugin.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            plugin.kill()
            raise
    if status != 0:
        raise RuntimeError(f"the plugin ended with {status}: {log_path.read_text()[-2000:]}")


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(_API_SOCKET)


def _mount_control_groups() -> None:
    """The first version's hierarchies, which containers of that time need."""
    root = Path("/sys/fs/cgroup")
    if os.path.ismount(root):
        return
    subprocess.run(["mount", "-t", "tmpfs", "cgroup", str(root)], check=True)
    lines = Path("/proc/cgroups").read_text().splitlines()[1:]
    for controller in (line.split()[0] for line in lines):
        target = root / controller
        target.mkdir()
        subprocess.run(["mount", "-t", "cgroup", "-o", controller, "cgroup", str(target)], check=True)


if __name__ == "__main__":
    fetch()
    print(UNPACKED)
