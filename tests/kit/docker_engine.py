"""Docker 20.10, the last that has the devicemapper driver in Debian, as a peer and as a client of the plugin.

Its packages are unpacked beside everything else, as any user:

    python -m tests.kit.docker_engine      fetches and unpacks them below the virtual environment

The daemon runs inside User-Mode Linux, as the guest's root, without networks. It is asked by its API, since a start of
its command takes a second of the guest's processor:

    with DockerEngine(directory, ["-s", "devicemapper"]) as engine:
        engine.import_image(archive, "image")
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self
from urllib.parse import urlencode

from cowfs.debian_packages import unpack
from cowfs.errors import MissingRequirement

UNPACKED: Final = Path(sys.prefix) / "share" / "cowfs" / "docker"
PACKAGES: Final = ("docker.io", "containerd", "runc", "tini", "busybox-static", "libdevmapper1.02.1")
FETCH_COMMAND: Final = "python -m tests.kit.docker_engine"
BUSYBOX: Final = UNPACKED / "bin" / "busybox"
PLUGIN_SOCKET: Final = Path("/run/docker/plugins/cowfs.sock")
_API_SOCKET: Final = "/run/docker.sock"
_LOG_HEADER_BYTES: Final = 8  # the stream, three bytes that are 0, and the length
_TAR: Final = "application/x-tar"
_START_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1


def is_unpacked(root: Path = UNPACKED) -> bool:
    programs = ("usr/sbin/dockerd", "usr/bin/containerd", "usr/sbin/runc", "bin/busybox")
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
    """A daemon in this machine, which is a separate guest: it mounts what it needs and leaves it.

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
            "HOME": "/run",
        }

    def start(self) -> None:
        """Start the daemon and wait until it answers. Raises RuntimeError with the end of its log."""
        _mount_control_groups()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log = (self._directory / "dockerd.log").open("ab")
        command = [
            *("dockerd", "--data-root", str(self._directory / "root"), "--exec-root", "/run/docker-exec"),
            *("--pidfile", "/run/docker.pid", "--host", f"unix://{_API_SOCKET}"),
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

    def info(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._ask("GET", "/info")
        return answer

    # --- images

    def import_image(self, archive: bytes, name: str) -> None:
        """An image of one layer from a tar archive."""
        self._act("/images/create", archive, fromSrc="-", repo=name)

    def build(self, context: Path, name: str) -> None:
        self._act("/build", _packed(context, "."), t=name, networkmode="none", rm="1")

    def images(self) -> dict[str, str]:
        """The id of each image, by its name and tag, or its id where it has none."""
        rows = self._ask("GET", "/images/json", all="1")
        return {tag: row["Id"] for row in rows for tag in row["RepoTags"] or [row["Id"]]}

    def save(self, name: str) -> bytes:
        return self.request("GET", f"/images/{name}/get")

    def load(self, archive: bytes) -> None:
        self._act("/images/load", archive, quiet="1")

    def tag(self, name: str, repository: str, tag: str) -> None:
        self._act(f"/images/{name}/tag", repo=repository, tag=tag)

    def pull(self, repository: str, tag: str) -> None:
        self._act("/images/create", fromImage=repository, tag=tag)

    def push(self, repository: str, tag: str) -> None:
        self._act(f"/images/{repository}/push", tag=tag)

    def remove_images(self, *names: str) -> None:
        for name in names:
            self.request("DELETE", f"/images/{name}")

    # --- containers

    def create(self, name: str, image: str, *command: str) -> None:
        """A container without a network."""
        wanted = {"Image": image, "Cmd": command or ["/bin/sh"], "HostConfig": {"NetworkMode": "none"}}
        self._ask("POST", "/containers/create", wanted, name=name)

    def run(self, image: str, *command: str) -> str:
        """What a command prints in a new container, which is removed. Raises RuntimeError where it fails."""
        self.create("run", image, *command)
        self.request("POST", "/containers/run/start")
        status = self._ask("POST", "/containers/run/wait")["StatusCode"]
        said = _output_of(self.request("GET", "/containers/run/logs?stdout=1&stderr=1"))
        self.remove_containers("run")
        if status != 0:
            raise RuntimeError(f"{' '.join(command)} in {image} ended with {status}: {said}")
        return said

    def copy_in(self, source: Path, container: str, directory: str, name: str = "") -> None:
        """A file or tree into a directory of a container, by its name or another one."""
        query = urlencode({"path": directory, "noOverwriteDirNonDir": "true"})
        self.request("PUT", f"/containers/{container}/archive?{query}", _packed(source, name or source.name), _TAR)

    def copy_out(self, container: str, path: str) -> bytes:
        """The content of a file of a container."""
        archive = self.request("GET", f"/containers/{container}/archive?{urlencode({'path': path})}")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            file = tar.extractfile(os.path.basename(path))
            assert file is not None
            return file.read()

    def changes(self, container: str) -> list[str]:
        """As Docker's command tells them: `A /added`, in order."""
        found = self._ask("GET", f"/containers/{container}/changes") or []
        return sorted(f"{'CAD'[change['Kind']]} {change['Path']}" for change in found)

    def export(self, container: str) -> bytes:
        return self.request("GET", f"/containers/{container}/export")

    def commit(self, container: str, image: str) -> None:
        self._ask("POST", "/commit", container=container, repo=image)

    def remove_containers(self, *names: str) -> None:
        for name in names:
            self.request("DELETE", f"/containers/{name}")

    # --- the API

    def request(self, method: str, path: str, body: bytes | IO[bytes] = b"", kind: str = "application/json") -> bytes:
        """A request of the daemon's API. Raises RuntimeError."""
        connection = _UnixConnection("docker")
        headers = {"Content-Type": kind, "X-Registry-Auth": base64.urlsafe_b64encode(b"{}").decode()}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise RuntimeError(f"{method} {path}: {response.status} {answer.decode(errors='replace')}")
        return answer

    def _ask(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """A request in JSON, and the answer to it."""
        data = b"" if body is None else json.dumps(body).encode()
        return json.loads(self.request(method, f"{path}?{urlencode(query)}", data))

    def _act(self, path: str, archive: bytes = b"", **query: str) -> None:
        """A request whose answer is its progress, a line of JSON for each step. Raises RuntimeError at an error."""
        for line in self.request("POST", f"{path}?{urlencode(query)}", archive, _TAR).splitlines():
            if "error" in (step := json.loads(line)):
                raise RuntimeError(f"POST {path}: {step['error']}")

    def log_tail(self) -> str:
        lines = (self._directory / "dockerd.log").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if "level=info" not in line)[-2000:]

    def _answers(self) -> bool:
        try:
            return bool(self.request("GET", "/_ping"))
        except (OSError, http.client.HTTPException, RuntimeError):
            return False

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


def _packed(source: Path, name: str) -> bytes:
    """A file or tree as a tar archive, by a name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(source, name)
    return out.getvalue()


def _output_of(log: bytes) -> str:
    """What a container's log holds: pieces of its streams, each with its length before it."""
    said = b""
    while log:
        end = _LOG_HEADER_BYTES + int.from_bytes(log[4:_LOG_HEADER_BYTES], "big")
        said, log = said + log[_LOG_HEADER_BYTES:end], log[end:]
    return said.decode()


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
