"""Servers of FUSE that others wrote, and the least one: qcow2 by qemu, fuse2fs, a bare handler in pyfuse3."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from cowfs.benchmarks.engines.interface import WORKS, Contender, Engine, Offer, Setting
from cowfs.benchmarks.engines.plain import DirectoryContender, synced
from cowfs.benchmarks.engines.tools import find_tool, lacking, run_tool, version_of
from cowfs.errors import CowfsError
from cowfs.pool.interface import ProbeResult

_START_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.01
_SIZE_BYTES: Final = 16 << 30  # sparse
_CLUSTER_BYTES: Final = 64 << 10
_MONITOR: Final = "monitor"
_BLOCK_DEVICES: Final = Path("/sys/block")


@contextmanager
def served(command: Sequence[str], target: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from the moment its mount answers until it has ended; it works in the directory of its log.

    Raises:
        CowfsError: it did not mount; with the last line that it said.
    """
    with log.open("wb") as said:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=log.parent,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not os.path.ismount(target):
            if server.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
                raise CowfsError(f"{command[0]} did not mount {target}: {last}")
            time.sleep(_PAUSE_SECONDS)
        yield server
    finally:
        if os.path.ismount(target):
            unmount = ("umount",) if os.geteuid() == 0 else ("fusermount3", "-u")
            run_tool(*unmount, target)
        server.terminate()
        try:
            server.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


class _Served(Contender):
    """A contender that has at most one server at a time."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.name, setting.directory)
        self._server: subprocess.Popen[bytes] | None = None

    @contextmanager
    def _serving(self, command: Sequence[str], target: Path) -> Iterator[Path]:
        with served(command, target, self.directory / "log") as server:
            self._server = server
            try:
                yield target
            finally:
                self._server = None

    def processes(self) -> list[int]:
        return [] if self._server is None else [self._server.pid]


def _fuse() -> ProbeResult | None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return ProbeResult(usable=False, problem="/dev/fuse cannot be opened", remedy="sudo modprobe fuse")
    return lacking("fuse3", "fusermount3")


# --- qcow2


class _Qcow2(_Served):
    """A device is the top of a chain of images; a snapshot makes its image the base of two new ones."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._cluster_bytes = setting.block_bytes or _CLUSTER_BYTES
        self._chains: dict[str, list[Path]] = {}  # the top last
        self._sizes: dict[str, int] = {}
        self._users: Counter[Path] = Counter()  # chains that an image is in
        self._count = 0
        self._open: tuple[str, _Monitor] | None = None

    def create(self, name: str, size_bytes: int) -> None:
        self._chains[name] = [self._new_image(["-f", "qcow2"], size_bytes)]
        self._sizes[name] = size_bytes
        self._users.update(self._chains[name])

    def _new_image(self, words: Sequence[str], size_bytes: int) -> Path:
        self._count += 1
        path = self.directory / f"image-{self._count}.qcow2"
        run_tool("qemu-img", "create", "-q", "-o", f"cluster_size={self._cluster_bytes}", *words, path, str(size_bytes))
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return path

    def _overlay(self, base: Path, size_bytes: int) -> Path:
        """Made without a look at the base (`-u`), for which qemu-img would open all of the chain."""
        return self._new_image(["-f", "qcow2", "-F", "qcow2", "-u", "-b", os.fspath(base)], size_bytes)

    def snapshot(self, origin: str, name: str) -> None:
        chain, size_bytes = self._chains[origin], self._sizes[origin]
        self._chains[name], self._sizes[name] = [*chain, self._overlay(chain[-1], size_bytes)], size_bytes
        top = self._overlay(chain[-1], size_bytes)
        if self._open is not None and self._open[0] == origin:
            self._open[1].put_on_top(_node(chain[-1]), top)
        self._chains[origin] = [*chain, top]
        self._users.update([*self._chains[name], top])

    def remove(self, name: str) -> None:
        chain = self._chains.pop(name)
        self._users.subtract(chain)
        for path in chain:
            if not self._users[path]:
                del self._users[path]
                path.unlink()

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        target = self.directory / "disk"
        target.touch()
        top = self._chains[name][-1]
        command = [
            find_tool("qemu-storage-daemon") or "qemu-storage-daemon",
            *("--chardev", f"socket,path={_MONITOR},server=on,wait=off,id=monitor", "--monitor", "chardev=monitor"),
            *("--blockdev", json.dumps(_blockdev(top))),
            *("--export", f"type=fuse,id=disk,node-name={_node(top)},mountpoint={target},writable=on"),
        ]
        with self._serving(command, target) as path, _Monitor(self.directory) as connected:
            self._open = name, connected
            try:
                yield path
            finally:
                self._open = None

    def settle(self) -> None:
        """The data that qemu has written is in the page cache of its files, and counted there."""

    def details(self) -> dict[str, str]:
        return {"version": version_of("qemu-storage-daemon"), "cluster size": f"{self._cluster_bytes >> 10} KiB"}


def _node(image: Path) -> str:
    return image.stem


def _blockdev(image: Path, **more: Any) -> dict[str, Any]:
    file = {"driver": "file", "filename": os.fspath(image)}
    return {"driver": "qcow2", "node-name": _node(image), "file": file, "discard": "unmap", **more}


class _Monitor:
    """The machine protocol of qemu: lines of JSON (docs/interop/qmp-spec.txt of qemu).

    The path of a socket has at most 107 bytes (unix(7)), so neither side uses that of the directory.
    """

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_START_SECONDS)
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            self._socket.connect(f"/proc/self/fd/{fd}/{_MONITOR}")
        finally:
            os.close(fd)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()  # the greeting
        self._ask("qmp_capabilities")

    def put_on_top(self, node: str, overlay: Path) -> None:
        """Have an image take the writes of an open node, which is its base from now on."""
        self._ask("blockdev-add", **_blockdev(overlay, backing=None))
        self._ask("blockdev-snapshot", node=node, overlay=_node(overlay))

    def _ask(self, command: str, **arguments: Any) -> None:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise CowfsError(f"qemu-storage-daemon refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                return
        raise CowfsError(f"qemu-storage-daemon ended at {command}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()


class _Qcow2Nbd(_Qcow2):
    """The same images behind a node of the kernel, which asks qemu-nbd; it takes no overlay while it serves."""

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        node = _free_nbd()
        if node is None:
            raise CowfsError("no /dev/nbd* is free; load more: sudo modprobe nbd nbds_max=16")
        place = [f"--connect={node}", f"--socket={self.directory / 'socket'}"]
        run_tool("qemu-nbd", *place, "--format=qcow2", "--discard=unmap", self._chains[name][-1])
        try:
            self._pid = int((_BLOCK_DEVICES / node.name / "pid").read_text())
            yield node
        finally:
            self._pid = 0
            run_tool("qemu-nbd", "--disconnect", node)
            self._wait_until_free(node)

    _pid = 0

    def _wait_until_free(self, node: Path) -> None:
        """The server ends a moment later. Raises CowfsError."""
        deadline = time.monotonic() + _START_SECONDS
        while (_BLOCK_DEVICES / node.name / "pid").exists():
            if time.monotonic() > deadline:
                raise CowfsError(f"qemu-nbd does not let go of {node}")
            time.sleep(_PAUSE_SECONDS)

    def processes(self) -> list[int]:
        return [self._pid] if self._pid else []

    def details(self) -> dict[str, str]:
        return super().details() | {"version": version_of("qemu-nbd")}


def _free_nbd() -> Path | None:
    """A node that is not connected: only a connected one has the attribute `pid`."""
    for path in sorted(_BLOCK_DEVICES.glob("nbd*")):
        if not (path / "pid").exists() and Path("/dev", path.name).exists():
            return Path("/dev", path.name)
    return None


def _look_for_nbd() -> ProbeResult:
    if os.geteuid() != 0:
        return ProbeResult(usable=False, problem="only root connects /dev/nbd*", remedy="sudo cowfs bench ...")
    if _free_nbd() is None:
        problem = "this kernel has no network block device that is free (/dev/nbd*)"
        return ProbeResult(usable=False, problem=problem, remedy="sudo modprobe nbd")
    return lacking("qemu-utils", "qemu-nbd", "qemu-img") or WORKS


@contextmanager
def _set_up_nbd(setting: Setting) -> Iterator[Contender]:
    yield _Qcow2Nbd(setting)


@contextmanager
def _set_up_qcow2(setting: Setting) -> Iterator[Contender]:
    yield _Qcow2(setting)


def _look_for_qemu() -> ProbeResult:
    tools = lacking("qemu-system-common", "qemu-storage-daemon") or lacking("qemu-utils", "qemu-img")
    return tools or _fuse() or WORKS


# --- fuse2fs


class OneMount(DirectoryContender):
    """One mount of a server; its devices are directories."""

    def __init__(self, setting: Setting, pid: int) -> None:
        super().__init__(setting.name, setting.directory)
        self._pid = pid

    @property
    def devices(self) -> Path:
        return self.directory / "mnt"

    def processes(self) -> list[int]:
        return [self._pid]


class _Fuse2fs(OneMount):
    def details(self) -> dict[str, str]:
        return {"version": version_of("fuse2fs"), "journal": "none is written"}


@contextmanager
def _set_up_fuse2fs(setting: Setting) -> Iterator[Contender]:
    image, target = setting.directory / "image", setting.directory / "mnt"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(_SIZE_BYTES)
    run_tool("mkfs.ext4", "-q", "-E", f"root_owner={os.geteuid()}:{os.getegid()}", image)
    command = [find_tool("fuse2fs") or "fuse2fs", "-f", os.fspath(image), os.fspath(target)]
    with served(command, target, setting.directory / "log") as server:
        yield _Fuse2fs(setting, server.pid)


def _look_for_fuse2fs() -> ProbeResult:
    return lacking("fuse2fs", "fuse2fs") or lacking("e2fsprogs", "mkfs.ext4") or _fuse() or WORKS


# --- the least that pyfuse3 can do


class _Bare(_Served):
    """A file behind a handler that does nothing but os.pread and os.pwrite."""

    def create(self, name: str, size_bytes: int) -> None:
        with (self.directory / name).open("xb") as file:
            file.truncate(size_bytes)

    def remove(self, name: str) -> None:
        (self.directory / name).unlink()

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        target = self.directory / "mnt"
        target.mkdir(exist_ok=True)
        words = ["-m", "cowfs.benchmarks.engines.bare_handler", os.fspath(self.directory / name), os.fspath(target)]
        with self._serving([sys.executable, *words], target):
            yield target / "disk"

    def settle(self) -> None:
        if self._server is not None:
            synced(self.directory / "mnt")


@contextmanager
def _set_up_bare(setting: Setting) -> Iterator[Contender]:
    yield _Bare(setting)


def _look_for_bare() -> ProbeResult:
    try:
        import pyfuse3  # noqa: F401
    except ImportError:
        return ProbeResult(usable=False, problem="pyfuse3 is not installed", remedy="pip install 'cowfs-thin[fuse]'")
    return _fuse() or WORKS


QCOW2: Final = Engine(
    "qcow2",
    "qcow2 by qemu-storage-daemon through FUSE: snapshots are backing chains",
    Offer.DISK | Offer.SNAPSHOTS | Offer.BLOCK_SIZE,
    _look_for_qemu,
    _set_up_qcow2,
)
QCOW2_NBD: Final = Engine(
    "qcow2-nbd",
    "qcow2 by qemu-nbd behind a node of the kernel",
    Offer.DISK | Offer.BLOCK_SIZE,
    _look_for_nbd,
    _set_up_nbd,
)
FUSE2FS: Final = Engine(
    "fuse2fs", "ext4 by fuse2fs, libext2fs in C through FUSE", Offer.TREE, _look_for_fuse2fs, _set_up_fuse2fs
)
BARE: Final = Engine(
    "bare-fuse",
    "the least that pyfuse3 can do: a file behind an empty handler",
    Offer.DISK,
    _look_for_bare,
    _set_up_bare,
)
