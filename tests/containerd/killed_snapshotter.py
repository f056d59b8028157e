"""kill -9 at every step of Prepare, Apply, Commit and Remove: python -m tests.containerd.killed_snapshotter

`python -m tests.containerd.killed_snapshotter FIRST EVERY dmthin` kills at one step of EVERY, from the FIRST, on the
kernel's dm-thin; in a guest: cowfs uml -- COMMAND.

A step is a call that changes a file, or punches what was freed out of it, or changes a device of the kernel, or one of
the database's transactions, before it and after it. A round forks a process that opens a home, answers the calls of
`CALLS` in turn, says on a pipe which are answered, and ends by SIGKILL at one step. Then the pool is checked by a full
recount, and the home is opened again, as the next snapshotter does, and judged: each snapshot is as the calls that were
answered left it, or as the one that was cut short would have; no device is without a snapshot, and none of containerd's
removals fails. A call whose client does not wait for it any more is undone, or was done when the process ended before
that.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio

import cowfs.blockdev
import cowfs_emulated.engine
from cowfs.containerd.calls import Decide, always
from cowfs.containerd.grpc import CallError
from cowfs.containerd.messages import message_class
from cowfs.containerd.snapshots import MAX_SIZE, Snapshotter
from cowfs.containerd.store import SnapshotStore
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.home.executor import Executor
from cowfs.home.maintenance import check_home
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec, Make
from cowfs.home.snapshot_keys import DEVICE_PREFIX
from cowfs.layers.driver import Prepare
from cowfs_dmthin.abi import Command
from cowfs_dmthin.control import Control

OPTIONS: Final = HomeOptions(data_size_bytes=64 << 20, metadata_size_bytes=2 << 20, base_size_bytes=16 << 20)
REQUESTS: Final = (Command.DEV_CREATE, Command.DEV_REMOVE, Command.DEV_SUSPEND, Command.TABLE_LOAD, Command.TARGET_MSG)
STEPS: Final = ("pwrite", "pwritev", "fsync", "fdatasync", "rename", "replace", "link", "unlink", "ftruncate")
Files = dict[str, bytes]
State = dict[str, tuple[str, str, Files]]  # key -> kind, parent, files
FIRST: Final[Files] = {"a": b"one" * 5000, "b": b"two"}
SECOND: Final[Files] = {"b": b"three" * 30000, "c": b"four"}

LIMITED: Final = "limited"  # has a max-size
LOST: Final = "Lost "  # before a method: its client does not wait for it any more

# What is called, and what that makes of the state: key, parent, and files.
CALLS: Final = (
    ("Prepare", "one", ""),
    ("Apply", "one", "first"),
    ("Commit", "one", "base"),
    ("Prepare", "two", "base"),
    ("Apply", "two", "second"),
    ("Lost Commit", "two", "top"),
    ("Commit", "two", "top"),
    ("View", "view", "top"),
    ("Lost Prepare", "box", "top"),
    ("Prepare", "box", "top"),
    ("Prepare", LIMITED, "top"),
    ("Commit", LIMITED, "boxed"),
    ("Remove", "view", ""),
    ("Remove", "box", ""),
    ("Remove", "boxed", ""),
    ("Remove", "top", ""),
)


def after(state: State, call: tuple[str, str, str]) -> State:
    """The state that a call makes."""
    method, key, other = call
    changed = dict(state)
    match method:
        case "Prepare" | "View":
            changed[key] = ("active" if method == "Prepare" else "view", other, state[other][2] if other else {})
        case "Apply":
            kind, parent, files = state[key]
            changed[key] = kind, parent, {**files, **(FIRST if other == "first" else SECOND)}
        case "Commit":
            _, parent, files = changed.pop(key)
            changed[other] = "committed", parent, files
        case "Remove":
            del changed[key]
    return changed


def done(call: tuple[str, str, str]) -> tuple[str, str, str]:
    """A call as if its client had waited for it."""
    return (call[0].removeprefix(LOST), *call[1:])


class Paths:
    """A mounter that mounts nothing."""

    def __init__(self, home: OpenHome) -> None:
        self._home = home

    def mount(self, layer_id: str, mount_label: str, *, prepare: Prepare, write_id: Prepare) -> str:
        raise NotImplementedError

    def show(self, layer_id: str, *, make_root: Prepare | None) -> str:
        if make_root is not None:
            with self._home.volumes.opened(layer_id) as volume:
                make_root(volume)
        return f"/shown/{layer_id}/rootfs"

    def unmount(self, layer_id: str) -> None:
        pass

    def unmount_all(self) -> None:
        pass


@contextmanager
def opened(path: Path, backend: str = "emulated") -> Iterator[tuple[OpenHome, SnapshotStore, Snapshotter]]:
    with open_here(HomeSpec(path, backend, make=Make.WHERE_ABSENT, options=OPTIONS)) as home:
        home.use_driver(home.settings, mounter=Paths(home), keep_root_owner=True)
        store = SnapshotStore(path)
        try:
            yield home, store, Snapshotter(Executor(home), store)
        finally:
            store.close()


@asynccontextmanager
async def removing(snapshotter: Snapshotter) -> AsyncIterator[None]:
    """With the service that removes devices; at the end, all that it was asked to remove is removed."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(snapshotter.serve_removals)
        yield
        nursery.cancel_scope.cancel()
    snapshotter.end()


def archive_of(files: Files) -> io.BytesIO:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    archive.seek(0)
    return archive


async def answer(snapshotter: Snapshotter, store: SnapshotStore, call: tuple[str, str, str]) -> None:
    method, key, other = call
    if method.startswith(LOST):
        with suppress(CallError):
            await _answer(snapshotter, (method.removeprefix(LOST), key, other), lambda _answer: False)
        return
    if method == "Apply":
        snapshot = store.find(key)
        assert snapshot is not None
        await snapshotter.unpack(snapshot, archive_of(FIRST if other == "first" else SECOND))
        return
    await _answer(snapshotter, call, always)


async def _answer(snapshotter: Snapshotter, call: tuple[str, str, str], decide: Decide) -> None:
    method, key, other = call
    fields: dict[str, Any] = {"key": key}
    if method in ("Prepare", "View"):
        fields["parent"] = other
    if key == LIMITED and method == "Prepare":
        fields["labels"] = {MAX_SIZE: str(8 << 20)}
    if method == "Commit":
        fields["name"] = other
    request: Any = message_class(f"{method}SnapshotRequest")(**fields)
    await getattr(snapshotter, method.lower())(request, decide)


def run_until(path: Path, backend: str, last_step: int, report: Callable[[bytes], object]) -> int:
    """Answer all calls, or end by SIGKILL at a step. Returns how many steps there are."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            step()
            return function(*args, **kwargs)

        return wrapper

    async def answer_all(snapshotter: Snapshotter, store: SnapshotStore) -> None:
        async with removing(snapshotter):
            for call in CALLS:
                await answer(snapshotter, store, call)
                report(b".")

    def counted_request(self: Control, command: Command, *args: Any, **kwargs: Any) -> Any:
        if command in REQUESTS:
            step()
        return ask(self, command, *args, **kwargs)

    ask = Control._call
    with opened(path, backend) as (_, store, snapshotter):
        setattr(Control, "_call", counted_request)  # noqa: B010
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        cowfs.blockdev._fallocate = counted(cowfs.blockdev._fallocate)
        setattr(cowfs_emulated.engine, "RECLAIM_BYTES", 1)  # noqa: B010 - what is freed is punched block by block
        write = store._write

        def around(*args: Any) -> None:
            step()
            write(*args)
            step()

        setattr(store, "_write", around)  # noqa: B010
        trio.run(answer_all, snapshotter, store)
    return steps


def killed_at(path: Path, backend: str, last_step: int) -> tuple[int, int]:
    """(calls that were answered, steps) of a process that ends at a step; 0 steps where it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(reading)
            steps = run_until(path, backend, last_step, lambda data: os.write(writing, data))
            os.write(writing, f" {steps}".encode())
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the process failed"
    return said.count("."), int(said.partition(" ")[2] or 0)


def found_state(home: OpenHome, store: SnapshotStore) -> State:
    """What there is; raises AssertionError for a device without a snapshot, or the other way."""
    kinds = {1: "view", 2: "active", 3: "committed"}
    state: State = {}
    for snapshot in store.all():
        files: Files = {}
        with home.driver.reading(snapshot.device) as root:
            if root.inode:
                for entry in root.tree.list_directory(root.inode):
                    if entry.name not in (b".", b".."):
                        size = root.tree.attributes(entry.inode).size_bytes
                        files[os.fsdecode(entry.name)] = root.tree.read(entry.inode, 0, size)
        state[snapshot.key] = kinds[snapshot.kind], snapshot.parent, files
    owned = {snapshot.device for snapshot in store.all() if snapshot.owns_device}
    assert owned == {record.name for record in home.devices.records() if record.name.startswith(DEVICE_PREFIX)}
    return state


async def collect(snapshotter: Snapshotter, store: SnapshotStore) -> None:
    """As containerd's garbage collection: children first."""
    while left := list(store.all()):
        parents = {snapshot.parent for snapshot in left}
        for snapshot in left:
            if snapshot.key not in parents:
                await snapshotter.remove(message_class("RemoveSnapshotRequest")(key=snapshot.key))


def judge(path: Path, backend: str, answered: int) -> None:
    """Check the pool of a home after a kill, open it, compare what is there, and remove all of it."""
    found = check_home(path, backend)
    assert not found.findings, found.findings

    async def judge_opened(home: OpenHome, store: SnapshotStore, snapshotter: Snapshotter) -> None:
        async with removing(snapshotter):
            await snapshotter.begin()
        state: State = {}
        for call in CALLS[:answered]:
            state = after(state, call)
        allowed = [state, *(after(state, call) for call in CALLS[answered : answered + 1])]
        allowed += [after(state, done(call)) for call in CALLS[answered : answered + 1]]
        found = found_state(home, store)
        assert found in allowed, f"after {answered} calls there is {_short(found)}, and not {_short(state)}"
        async with removing(snapshotter):
            await collect(snapshotter, store)
        assert found_state(home, store) == {}

    with opened(path, backend) as (home, store, snapshotter):
        trio.run(judge_opened, home, store, snapshotter)


def _short(state: State) -> dict[str, tuple[str, str, dict[str, int]]]:
    return {
        key: (kind, parent, {name: len(data) for name, data in files.items()})
        for key, (kind, parent, files) in state.items()
    }


def kill(path: Path, first: int = 1, every: int = 1, backend: str = "emulated") -> int:
    """Kill at each step, or at some of them; how many times."""
    answered, steps = killed_at(path, backend, -1)
    assert answered == len(CALLS)
    assert steps > 100
    judge(path, backend, answered)
    killed = 0
    for number in range(first, steps + 1, every):
        answered, _ = killed_at(path, backend, number)
        judge(path, backend, answered)
        killed += 1
    return killed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="killed-") as name:
        first, every, backend = [*sys.argv[1:], *("1", "1", "emulated")[len(sys.argv) - 1 :]]
        print(f"{kill(Path(name) / 'home', int(first), int(every), backend)} kills, all is well")
