"""Forked processes: what the parent has open is of no use in them, and they keep nothing of it."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

import cowfs
from cowfs.blockdev import FileDevice
from cowfs.devices import opening
from cowfs.errors import ForkedError, HomeBusy
from cowfs.ext4.volume import Volume
from cowfs.forking import _registered, close_in_children, not_inherited
from cowfs.home.control.client import Client
from cowfs.home.requests.devices import Status
from cowfs.pool import load_backend
from tests.home.conftest import PATIENCE_SECONDS, SMALL, serving
from tests.kit.contents import contents


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises in a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            outcome: object = work()
        except BaseException as error:
            outcome = error if isinstance(error, ForkedError) else RuntimeError(repr(error))
        try:
            answer = outcome.args if isinstance(outcome, Exception) else outcome
            os.write(writing, pickle.dumps((type(outcome), answer)))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        kind, answer = pickle.loads(file.read())
    os.waitpid(pid, 0)
    if issubclass(kind, ForkedError):
        number, text = answer
        assert number == errno.EBADF
        assert f"is open in process {os.getpid()}, from which process {pid} was forked" in text
        assert "open the home again in this process" in text
        raise ForkedError("what is open in the parent", pid)
    if issubclass(kind, BaseException):
        raise AssertionError(answer)
    return answer


@contextmanager
def living_child() -> Iterator[int]:
    """A forked process that does nothing, for the length of a `with` block."""
    waiting, ready = os.pipe()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.write(ready, b".")
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    os.close(ready)
    assert os.read(waiting, 1) == b"."
    os.close(waiting)
    try:
        yield pid
    finally:
        os.close(writing)
        os.waitpid(pid, 0)


def test_only_the_parent_makes_devices(home: Path) -> None:
    with cowfs.open_home(home) as opened:
        with pytest.raises(ForkedError):
            in_child(lambda: opened.create("childs"))
        opened.create("parents")
        assert [row.name for row in opened.devices()] == ["base", "parents", "web"]
        assert opened.check().clean


HOME_USES: dict[str, Callable[[cowfs.Home], object]] = {
    "path": lambda home: home.path,
    "status": lambda home: home.status(),
    "devices": lambda home: home.devices(),
    "create": lambda home: home.create("x"),
    "remove": lambda home: home.remove("web"),
    "trim": lambda home: home.trim("web"),
    "resize": lambda home: home.resize("web", 32 << 20),
    "layers": lambda home: list(home.layers.list()),
    "message": lambda home: home.message("create_thin 77"),
    "check": lambda home: home.check(),
    "device": lambda home: home.device("web").__enter__(),
}


@pytest.mark.parametrize("use", HOME_USES)
@pytest.mark.parametrize("is_served", [False, True], ids=["held", "served"])
def test_a_home_is_its_openers(home: Path, use: str, is_served: bool) -> None:
    if is_served and use in ("path", "device"):
        pytest.skip("a home that another process holds has its path in memory, and no devices")
    before = contents(home)
    with serving(home) if is_served else nullcontext(), cowfs.open_home(home) as opened:
        with pytest.raises(ForkedError):
            in_child(lambda: HOME_USES[use](opened))
        assert opened.status().devices == 1
        assert opened.check().clean
    assert contents(home) == before


def test_an_open_device_is_its_openers(home: Path) -> None:
    with cowfs.open_home(home) as opened, opened.device("web") as disk:
        uses: list[Callable[[], object]] = [
            lambda: disk.pread(0, 512),
            lambda: disk.pwrite(0, bytes(512)),
            disk.flush,
            lambda: disk.discard(0, 65536),
            lambda: disk.size_bytes,
            disk.status,
        ]
        for use in uses:
            with pytest.raises(ForkedError):
                in_child(use)
        assert len(disk.pread(0, 512)) == 512


def test_everything_below_a_home_is_its_openers(home: Path) -> None:
    with opening.open_home(home, load_backend("emulated")) as devices:
        pool, disk = devices.pool, devices.active.activate("web")
        with closing(Volume.open(disk)) as volume, closing(FileDevice(home / "devicemapper/data")) as file:
            uses: list[Callable[[], object]] = [
                lambda: "web" in devices,
                lambda: devices.create("x"),
                pool.status,
                lambda: pool.create_thin(77),
                pool.commit,
                pool.active,
                lambda: volume.attributes(2),
                volume.sync,
                lambda: file.pread(0, 1),
                lambda: file.discard(0, 65536),
                file.flush,
            ]
            for use in uses:
                with pytest.raises(ForkedError):
                    in_child(use)
            assert volume.attributes(2).inode == 2
        devices.active.deactivate("web")


def test_what_ends_a_use_does_nothing_in_a_child(home: Path) -> None:
    with cowfs.open_home(home) as opened, opened.device("web") as disk:
        disk.pwrite(0, b"not committed yet")
        before = contents(home, leave_out=())

        def leave() -> None:
            with opened, closing(disk):
                pass
            opened.close()

        in_child(leave)
        assert contents(home, leave_out=()) == before
        assert (home / "cowfs.lock").read_text() == f"{os.getpid()}\n"
        assert disk.pread(0, 17) == b"not committed yet"


def test_a_child_may_open_its_own(home: Path, tmp_path: Path) -> None:
    def work() -> str:
        with pytest.raises(HomeBusy, match=f"held by process {os.getppid()}"):
            cowfs.open_home(home)
        opening.make_home(tmp_path / "other", load_backend("emulated"), SMALL).close()
        with cowfs.open_home(tmp_path / "other") as other:
            return other.create("a").name

    with cowfs.open_home(home) as opened:
        opened.status()
        assert in_child(work) == "a"


def test_a_child_that_lives_on_holds_no_lock(home: Path) -> None:
    with cowfs.open_home(home) as opened, living_child() as pid:
        links = links_of(pid)
        assert [link for link in links if link.startswith(str(home))] == []
        child = pid
        opened.close()
        with cowfs.open_home(home) as again:  # the lock would be the child's too
            assert again.holder_pid is None
            assert again.create("later").name == "later"
        assert os.path.exists(f"/proc/{child}")


def test_a_child_that_lives_on_keeps_no_connection(home: Path) -> None:
    """Neither of a client, nor of a server whose process forked."""
    with serving(home):
        client = Client(home)
        client.call(Status())
        with living_child() as pid:
            assert sockets_of(os.getpid()), "the home is not served"
            assert sockets_of(pid) == []
            client.close()


def sockets_of(pid: int) -> list[str]:
    """Links of the descriptors of a process that are a control socket, or a server's end of a connection to one."""
    table = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    inodes = {f"socket:[{words[6]}]" for words in table if words[-1].endswith("cowfs.sock")}
    return [link for link in links_of(pid) if link in inodes]


def links_of(pid: int) -> list[str]:
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # the descriptor of the directory itself
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return links


SERVER = """
import os, sys, trio
from cowfs.devices import opening
from cowfs.devices.deviceset import DeviceSet
from cowfs.home.control.server import ControlServer
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec
from pathlib import Path

async def main():
    with open_here(HomeSpec(Path(sys.argv[1]), durable=False)) as home:
        async with trio.open_nursery() as nursery:
            await nursery.start(ControlServer(home).serve)
            pid = os.fork()
            if pid == 0:
                raise KeyboardInterrupt  # leaves every block on the way
            assert os.waitpid(pid, 0)[1] == 7 << 8
            assert os.path.exists(sys.argv[1] + "/cowfs.sock")
            nursery.cancel_scope.cancel()
    assert not os.path.exists(sys.argv[1] + "/cowfs.sock")
    print("well", flush=True)
    os._exit(0)  # trio is not made for a fork in it

try:
    trio.run(main)
except BaseExceptionGroup:
    os._exit(7)
"""


def test_a_child_of_a_server_leaves_its_socket(home: Path) -> None:
    command = [sys.executable, "-c", SERVER, str(home)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert result.stdout == "well\n", result.stderr


def _make_device(home: cowfs.Home, answers: Any) -> None:
    try:
        home.create("x")
    except ForkedError as error:
        answers.put(str(error))


def test_multiprocessing_by_fork(home: Path) -> None:
    context = multiprocessing.get_context("fork")
    with cowfs.open_home(home) as opened:
        answers = context.Queue()
        process = context.Process(target=_make_device, args=(opened, answers))
        process.start()
        assert f"the home {home} is open in process {os.getpid()}" in answers.get(timeout=PATIENCE_SECONDS)
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0
        opened.create("x")


def test_threads_that_open_and_close_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    is_over = threading.Event()

    def busy() -> None:
        while not is_over.is_set():
            FileDevice(path).close()

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with closing(FileDevice(path)) as device:
            for _ in range(20):
                with pytest.raises(ForkedError):
                    in_child(lambda: device.pread(0, 1))
    finally:
        is_over.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)


def test_objects_that_are_deleted_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    before = len(_registered)
    for _ in range(10):
        FileDevice(path).close()
    assert len(_registered) <= before


class Thing:
    name = "thing"

    def use(self) -> str:
        return self.name


def test_objects_that_end_in_the_child_hinder_nothing() -> None:
    """The garbage collector runs while the child lets go of thousands of objects, and one of them is garbage."""
    thing, others = Thing(), [Thing() for _ in range(5000)]
    not_inherited(thing, "a thing")
    for other in others:
        close_in_children(other, lambda _: None)
    gc.collect()
    garbage: Any = Thing()
    garbage.itself = garbage
    close_in_children(garbage, lambda _: None)
    del garbage
    with pytest.raises(ForkedError):
        in_child(thing.use)


def test_a_child_that_cannot_let_go_ends(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(_: Thing) -> None:
        raise RuntimeError("not closed")

    thing = Thing()
    not_inherited(thing, "a thing", drop=fail)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert "RuntimeError: not closed" in capfd.readouterr().err
