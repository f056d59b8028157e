"""Homes for cases: the driver of this package over a backend, in this process, or in one that serves the home.

in_process(backend)    the files of layers are reached through the ext4 engine, or where the kernel mounts them
served(backend)        ... at the paths that `get` gives, which a FUSE mount shows; everything is done through that
                       process, as it does for Docker
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.names import BASE
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.tools.fsck import check_volume
from cowfs.home.api.home import open_home
from cowfs.home.api.layers import Layers
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec, Make
from cowfs.layers import Change, ChangeKind, Driver
from cowfs.layers.info import status_items
from cowfs.layers.roots import ensure_root
from cowfs.pool import NodeThin, ThinDevice
from cowfs.steps import Steps
from cowfs.testing.cases import NotApplicableError
from cowfs.testing.judges import require_clean_pool
from cowfs.testing.layers.files import DirectoryFiles, Files, TreeFiles
from cowfs.testing.layers.lab import Home, HomeFactory
from cowfs.testing.layers.remote import FileProcess

_MOST_JUDGED: Final = 8
_PIECE_BYTES: Final = 1 << 16
_PATIENCE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.02


def in_process(backend: str) -> HomeFactory:
    """A factory of homes on a backend, open in this process."""
    return lambda directory, options: InProcessHome(directory, backend, options)


def served(backend: str) -> HomeFactory:
    """A factory of homes on a backend, each served by a separate process. Needs FUSE."""
    return lambda directory, options: ServedHome(directory, backend, options)


def _spec(path: Path, backend: str, storage_options: Sequence[str] = ()) -> HomeSpec:
    return HomeSpec(path, backend, durable=False, storage_options=tuple(storage_options), make=Make.WHERE_ABSENT)


class InProcessHome:
    """A `Home` without FUSE."""

    root_owner = (0, 0)

    def __init__(self, directory: str, backend: str, storage_options: Sequence[str]) -> None:
        self._home = open_here(_spec(Path(directory), backend, storage_options))
        self.shows_paths = self._home.settings.kernel_mounts
        self._devices = self._home.devices
        self.driver: Driver = self._home.driver

    @contextmanager
    def files(self, layer_id: str) -> Iterator[Files]:
        if self.shows_paths:
            path = self.driver.get(layer_id)
            try:
                yield DirectoryFiles(path)
            finally:
                self.driver.put(layer_id)
            return
        with self._home.volumes.opened(layer_id) as volume:
            yield TreeFiles(ensure_root(volume, self.root_owner))

    def message(self, text: str) -> None:
        self._devices.pool.message(text)

    def retry_deletions(self) -> int:
        return self._devices.deletions.retry()

    def mapped_bytes(self, layer_id: str) -> int:
        return self._devices.reports.inspect(layer_id).mapped_bytes

    def judge(self) -> None:
        judge_devices(self._devices)

    def close(self) -> None:
        with ExitStack() as last:
            last.callback(self._home.close)
            last.callback(self._home.volumes.close_all)
            self.driver.cleanup()


class ServedHome:
    """A `Home` that a process serves, which is Docker's plugin: all of it is in one FUSE mount."""

    shows_paths = True
    root_owner = (0, 0)

    def __init__(self, directory: str, backend: str, storage_options: Sequence[str]) -> None:
        self._path = Path(directory)
        self._backend = backend
        # What is wrong with the options is reported here, and not by the end of a process.
        open_here(_spec(self._path, backend, storage_options)).close()
        self._log = f"{directory}.log"
        self._socket_directory = tempfile.TemporaryDirectory(prefix="cowfs-")  # its path must be short
        address = os.path.join(self._socket_directory.name, "plugin")
        self._process = self._start(address, storage_options)
        self._files = FileProcess()
        try:
            self._wait_until_served(address, storage_options)
            self.driver: Driver = LayersDriver(self._path, backend)
        except BaseException:
            self._files.close()
            self._stop()
            raise

    def _start(self, address: str, storage_options: Sequence[str]) -> subprocess.Popen[bytes]:
        options = [word for option in storage_options for word in ("--storage-opt", option)]
        program = [sys.executable, "-m", "cowfs", "--home", str(self._path), "--backend", self._backend, *options]
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                [*program, "docker", "plugin", "--socket", address],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_until_served(self, address: str, storage_options: Sequence[str]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        answer = None
        while answer is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start; see {self._log}")
            with suppress(FileNotFoundError, ConnectionRefusedError):  # it does not listen yet
                answer = _post(address, "/GraphDriver.Init", {"Home": str(self._path), "Opts": list(storage_options)})
            time.sleep(_POLL_SECONDS)
        if answer.get("Err"):
            raise AssertionError(f"the server did not start: {answer['Err']}")

    @contextmanager
    def files(self, layer_id: str) -> Iterator[Files]:
        path = self.driver.get(layer_id)
        try:
            yield self._files.files(path)
        finally:
            self.driver.put(layer_id)

    def message(self, text: str) -> None:
        with open_home(self._path, backend=self._backend) as home:
            home.message(text)

    def retry_deletions(self) -> int:
        raise NotApplicableError("the process that serves the home retries on its own")

    def mapped_bytes(self, layer_id: str) -> int:
        with open_home(self._path, backend=self._backend) as home:
            return home.inspect(layer_id).mapped_bytes

    def judge(self) -> None:
        self.close()
        with open_here(_spec(self._path, self._backend)) as home:
            judge_devices(home.devices)

    def close(self) -> None:
        if self._process.returncode is None:
            with ExitStack() as last:
                last.callback(self._stop)
                last.callback(self._files.close)
                self.driver.cleanup()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"the server did not end; see {self._log}") from None
        finally:
            self._socket_directory.cleanup()
        if status:
            raise AssertionError(f"the server ended with status {status}; see {self._log}")


def judge_devices(devices: DeviceSet) -> None:
    """Have the metadata and the file systems of some devices looked at.

    Raises:
        AssertionError: not clean.
        MissingRequirement: `thin_check` or `e2fsck` is not installed.
    """
    in_pool = set(devices.pool.thin_ids())
    names = [record.name for record in devices.records() if not record.deleted and record.device_id in in_pool]
    half = _MOST_JUDGED // 2
    for name in dict.fromkeys([BASE, *names[:half], *names[-half:]]):
        with devices.active.activated(name, "disk") as thin:
            found = _judge_filesystem(devices.base.filesystem_name, thin)
        if found:
            raise AssertionError(f"'{name}' is not clean: {found}")
    require_clean_pool(devices.pool)


def _judge_filesystem(kind: str, thin: ThinDevice) -> str:
    """What the file system's own checker finds; empty when nothing."""
    if kind != "xfs":
        result = check_volume(thin)
        return "" if result.clean else result.summary
    assert isinstance(thin, NodeThin)
    status, output = tools.run("xfs_repair", ["-n", thin.node], "xfsprogs")
    return tools.one_line(output) if status else ""


class LayersDriver:
    """A `Driver` through the process that holds a home, with a connection for each call as commands have."""

    def __init__(self, home: Path, backend: str) -> None:
        self._path = home
        self._backend = backend
        self._gets: Counter[str] = Counter()

    @contextmanager
    def _layers(self) -> Iterator[Layers]:
        with open_home(self._path, backend=self._backend) as home:
            if home.holder_pid is None:
                raise AssertionError("the process that served the home is gone")
            yield home.layers

    def create(self, layer_id: str, parent: str | None, storage_options: Mapping[str, str] | None = None) -> None:
        with self._layers() as layers:
            layers.create(layer_id, parent, storage_options)

    def remove(self, layer_id: str) -> None:
        with self._layers() as layers:
            layers.remove(layer_id)

    def exists(self, layer_id: str) -> bool:
        with self._layers() as layers:
            return layers.exists(layer_id)

    def list_layers(self) -> list[str]:
        with self._layers() as layers:
            return list(layers.list())

    def get(self, layer_id: str, mount_label: str = "") -> str:
        with self._layers() as layers:
            path = layers.get(layer_id, mount_label)
        self._gets[layer_id] += 1
        return path

    def put(self, layer_id: str) -> None:
        with self._layers() as layers:
            layers.put(layer_id)
        self._gets[layer_id] -= 1

    def metadata(self, layer_id: str) -> dict[str, str]:
        with self._layers() as layers:
            return layers.metadata(layer_id)

    def status(self) -> list[tuple[str, str]]:
        with self._layers() as layers:
            return status_items(layers.info())

    def changes(self, layer_id: str, parent: str | None) -> Steps[list[Change]]:
        yield
        with self._layers() as layers:
            found = layers.changes(layer_id, parent)
            return [Change(os.fsencode(change.path), ChangeKind.of_letter(change.kind)) for change in found]

    def diff(self, layer_id: str, parent: str | None, *, sparse: bool = False) -> Generator[bytes, None, None]:
        with self._layers() as layers, layers.diff(layer_id, parent, sparse=sparse) as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def apply(self, layer_id: str, parent: str | None, archive: IO[bytes], *, as_docker: bool = False) -> Steps[int]:
        del parent, as_docker  # never
        yield
        with self._layers() as layers:
            return layers.apply(layer_id, archive)

    def diff_size(self, layer_id: str, parent: str | None) -> Steps[int]:
        yield
        with self._layers() as layers:
            return layers.size(layer_id, parent)

    def cleanup(self) -> None:
        for layer_id in list(self._gets.elements()):
            self.put(layer_id)


class _Connection(http.client.HTTPConnection):
    def __init__(self, address: str) -> None:
        super().__init__("plugin", timeout=_PATIENCE_SECONDS)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address)


def _post(address: str, path: str, body: object) -> dict[str, object]:
    connection = _Connection(address)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        found: dict[str, object] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return found


if TYPE_CHECKING:
    _homes: tuple[type[Home], ...] = (InProcessHome, ServedHome)
    _drivers: tuple[type[Driver], ...] = (LayersDriver,)
