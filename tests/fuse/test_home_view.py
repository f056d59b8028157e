"""Which volumes the home view has open, and what it keeps of those it closes; without a mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from pyfuse3 import ROOT_INODE, EntryAttributes, FUSEError, RequestContext, StatvfsData

from cowfs.errors import FilesystemError, MissingRequirement, OutOfDataSpace, UnknownDevice, UsageError
from cowfs.filetree import TreeStatistics
from cowfs.fuse.home_view import HomeView
from tests.fuse.memory_tree import MemoryTree


class Context(RequestContext):
    """Of a request from a thread that is not there any more."""

    pid = 1 << 30


CONTEXT = Context()
POOL_BLOCKS = 4711


class CountedTree(MemoryTree):
    """Says how often it is open, and fails to sync on request."""

    def __init__(self) -> None:
        super().__init__()
        self.users = 0
        self.sync_fails = False

    def quiesce(self) -> None:
        if self.sync_fails:
            raise OutOfDataSpace("the pool is full")
        super().quiesce()


class FakeDevices:
    """Devices in memory: what is written stays, as on a disk; names marked for deletion are not shown."""

    def __init__(self, *names: str) -> None:
        self.trees = {name: CountedTree() for name in names}
        self.numbers = {name: number for number, name in enumerate(names, 1)}
        self.hidden: set[str] = set()
        self.failures: dict[str, Exception] = {}

    def shown(self) -> list[tuple[int, str]]:
        return [(number, name) for name, number in self.numbers.items() if name not in self.hidden]

    def number(self, name: str) -> int | None:
        return None if name in self.hidden else self.numbers.get(name)

    def open(self, name: str) -> CountedTree:
        if name in self.failures:
            raise self.failures[name]
        self.trees[name].users += 1
        return self.trees[name]

    def close(self, name: str) -> None:
        tree = self.trees[name]
        tree.users -= 1
        assert tree.users >= 0
        if not tree.users:
            for node in tree.nodes.values():
                node.pins = 0
                assert node.nlink, "something that is open without a name was lost"

    def rebalance(self) -> None:
        """Nothing is cached here."""

    def figures(self) -> TreeStatistics:
        return TreeStatistics(4096, POOL_BLOCKS, 0, 0, 0, 0, 255)

    def open_names(self) -> str:
        return "".join(name for name, tree in self.trees.items() if tree.users)


@pytest.fixture
def devices() -> FakeDevices:
    return FakeDevices(*"abcd")


@pytest.fixture
def view(devices: FakeDevices) -> HomeView:
    return HomeView(devices, "/mnt", open_max=2)  # type: ignore[arg-type]  # all of a tree that a view uses


async def refused(handler: Callable[..., Awaitable[Any]], *arguments: Any) -> str:
    with pytest.raises(FUSEError) as caught:
        await handler(*arguments)
    return errno.errorcode[caught.value.errno]


async def look_up(view: HomeView, *path: str) -> int:
    inode = int(ROOT_INODE)
    for name in path:
        entry: EntryAttributes = await view.lookup(inode, os.fsencode(name), CONTEXT)
        inode = int(entry.st_ino)
    return inode


async def visit(view: HomeView, names: str) -> None:
    """Ask for something in devices that only an open volume can answer."""
    for name in names:
        await view.opendir(await look_up(view, name), CONTEXT)


async def make_file(view: HomeView, parent: int, name: bytes) -> int:
    """A file that is open; its handle."""
    info, entry = await view.create(parent, name, 0o644, os.O_RDWR, CONTEXT)
    assert info.fh >> 1 == entry.st_ino
    return int(info.fh)


async def test_the_longest_unused_volume_makes_room(devices: FakeDevices, view: HomeView) -> None:
    a = await look_up(view, "a")
    await look_up(view, "b")
    assert devices.open_names() == "ab"
    await view.getattr(a, CONTEXT)
    await look_up(view, "c")
    assert devices.open_names() == "ac"
    assert devices.trees["b"].syncs == 1
    view.close()
    assert devices.open_names() == ""


async def test_a_volume_that_was_closed_goes_on(devices: FakeDevices, view: HomeView) -> None:
    handle = await make_file(view, await look_up(view, "a"), b"f")
    await view.write(handle, 0, b"before")
    await look_up(view, "b")
    await look_up(view, "c")
    assert devices.open_names() == "bc"
    await view.write(handle, 6, b" and after")
    assert devices.open_names() == "ac"
    assert await view.read(handle, 0, 100) == b"before and after"
    # What the kernel knew before is known to the new opening: it lives on without a name.
    await view.unlink(await look_up(view, "a"), b"f", CONTEXT)
    assert await view.read(handle, 0, 100) == b"before and after"


async def test_what_is_open_without_a_name_keeps_its_volume_open(devices: FakeDevices, view: HomeView) -> None:
    a = await look_up(view, "a")
    handle = await make_file(view, a, b"f")
    await view.unlink(a, b"f", CONTEXT)
    await visit(view, "bcd")
    assert devices.open_names() == "ad"
    await view.release(handle)
    await view.forget([(handle >> 1, 1)])
    await visit(view, "bcd")
    assert devices.open_names() == "cd"


async def test_a_volume_that_cannot_be_written_down_stays_open(devices: FakeDevices, view: HomeView) -> None:
    await visit(view, "a")
    devices.trees["a"].sync_fails = True
    await visit(view, "bc")
    assert devices.open_names() == "ac"
    devices.trees["a"].sync_fails = False
    await visit(view, "b")
    assert devices.open_names() == "bc"


async def test_a_request_that_waits_keeps_its_volume_open(devices: FakeDevices, view: HomeView) -> None:
    class Waiting:
        """A queue for space that stays full for as long as this test likes."""

        def __init__(self) -> None:
            self.asked, self.answer = trio.Event(), trio.Event()

        async def wait(self) -> bool:
            self.asked.set()
            await self.answer.wait()
            return True

    waiting = view.space = Waiting()  # type: ignore[assignment]
    a = (await view.lookup(ROOT_INODE, b"a", CONTEXT)).st_ino
    info, _ = await view.create(a, b"f", 0o644, os.O_RDWR, CONTEXT)
    tree = devices.trees["a"]
    tree.full = tree.may_queue = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.write, info.fh, 0, b"text")
        await waiting.asked.wait()
        for name in (b"b", b"c", b"d"):
            await view.lookup(ROOT_INODE, name, CONTEXT)
        assert devices.open_names() == "ad"
        tree.full = False
        waiting.answer.set()
    assert await view.read(info.fh, 0, 100) == b"text"


async def test_held_devices_stay_open_and_there(devices: FakeDevices, view: HomeView) -> None:
    assert view.hold("a") == "/mnt/a"
    view.hold("a")
    await visit(view, "bcd")
    assert devices.open_names() == "ad"
    devices.hidden.add("a")
    a = await look_up(view, "a")
    assert await view.kernel_cache.close_if_idle("a") is False
    view.end_hold("a")
    view.end_hold("a")
    with pytest.raises(UsageError):
        view.end_hold("a")
    assert await look_up(view, "a") == a  # as long as the kernel knows it: something may be mounted in it
    assert (await view.getattr(a, CONTEXT)).st_ino == a
    await visit(view, "bcd")  # it could not be opened again
    assert "a" in devices.open_names()
    await view.forget([(a, 2)])
    view.sync_changes()
    assert "a" not in devices.open_names()
    assert await refused(view.lookup, ROOT_INODE, b"a", CONTEXT) == "ENOENT"
    assert await refused(view.getattr, a, CONTEXT) == "ESTALE"
    with pytest.raises(UnknownDevice):
        view.hold("a")


async def test_what_is_forgotten_is_closed_before_long(devices: FakeDevices, view: HomeView) -> None:
    a = await look_up(view, "a")
    await look_up(view, "a")
    view.sync_changes()
    assert devices.open_names() == "a"
    await view.forget([(a, 2), (ROOT_INODE, 5)])
    view.sync_changes()
    assert devices.open_names() == ""
    assert await view.kernel_cache.close_if_idle("a") is True


async def test_closed_volumes_answer_for_their_roots(devices: FakeDevices, view: HomeView) -> None:
    a = await look_up(view, "a")
    await view.mkdir(a, b"dir", 0o755, CONTEXT)
    before = await view.getattr(a, CONTEXT)
    await look_up(view, "b")
    await look_up(view, "c")
    entry = await view.lookup(ROOT_INODE, b"a", CONTEXT)
    assert devices.open_names() == "bc"
    for field in ("st_ino", "st_mode", "st_nlink", "st_uid", "st_mtime_ns"):
        assert getattr(entry, field) == getattr(before, field)


async def test_a_device_that_was_replaced_is_another_one(devices: FakeDevices, view: HomeView) -> None:
    """Its content is in another thin; what the kernel knows of the old one is not what it looks up now."""
    before = await look_up(view, "a")
    await visit(view, "bc")
    devices.numbers["a"] = 99
    devices.trees["a"] = CountedTree()
    assert await refused(view.getattr, before, CONTEXT) == "ESTALE"
    after = await look_up(view, "a")
    assert after != before
    await view.getattr(after, CONTEXT)
    await view.forget([(before, 1)])
    await view.getattr(after, CONTEXT)
    assert (await view.statfs(CONTEXT)).f_blocks == devices.trees["a"].statistics().blocks


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (FilesystemError("damaged", errno=errno.EUCLEAN), "EUCLEAN"),
        (MissingRequirement("no e2fsck", remedy="install it"), "EIO"),  # never ENOSYS, which the kernel remembers
        (ZeroDivisionError("a bug"), "EIO"),
    ],
)
async def test_a_volume_that_cannot_be_opened(
    devices: FakeDevices, view: HomeView, failure: Exception, answer: str
) -> None:
    devices.failures["a"] = failure
    assert await refused(view.lookup, ROOT_INODE, b"a", CONTEXT) == answer
    with pytest.raises(type(failure)):
        view.hold("a")
    await look_up(view, "b")
    del devices.failures["a"]
    await look_up(view, "a")


async def test_a_known_device_that_cannot_be_opened_again_keeps_its_name(devices: FakeDevices, view: HomeView) -> None:
    """To an error the kernel would detach what is mounted below it."""
    a = await look_up(view, "a")
    view._open.known[1].root = None
    await visit(view, "bc")
    view._open.known[1].root = None
    devices.failures["a"] = FilesystemError("damaged", errno=errno.EUCLEAN)
    assert await look_up(view, "a") == a
    assert await refused(view.getattr, a, CONTEXT) == "EUCLEAN"


async def test_a_failure_in_one_device_leaves_the_others_writable(
    devices: FakeDevices, view: HomeView, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    a, b = await look_up(view, "a"), await look_up(view, "b")
    monkeypatch.setattr(devices.trees["a"], "make_directory", broken)
    assert await refused(view.mkdir, a, b"dir", 0o755, CONTEXT) == "EIO"
    assert await refused(view.mkdir, a, b"dir", 0o755, CONTEXT) == "EROFS"
    await view.mkdir(b, b"dir", 0o755, CONTEXT)


async def test_nothing_moves_between_devices(view: HomeView) -> None:
    a, b = await look_up(view, "a"), await look_up(view, "b")
    handle = await make_file(view, a, b"f")
    assert await refused(view.rename, a, b"f", b, b"f", 0, CONTEXT) == "EXDEV"
    assert await refused(view.link, handle >> 1, b, b"f", CONTEXT) == "EXDEV"
    assert await refused(view.rename, ROOT_INODE, b"a", b, b"f", 0, CONTEXT) == "EXDEV"
    assert await refused(view.rename, ROOT_INODE, b"a", ROOT_INODE, b"z", 0, CONTEXT) == "EPERM"
    await view.rename(a, b"f", a, b"g", 0, CONTEXT)


async def test_a_name_is_kept_only_in_a_burst_of_walks(view: HomeView) -> None:
    seconds = [(await view.lookup(ROOT_INODE, b"a", CONTEXT)).entry_timeout for _ in range(100)]
    assert seconds[:10] == [0] * 10
    assert 0 < max(seconds) <= 0.1


async def test_free_space_is_that_of_what_the_thread_touched_last(devices: FakeDevices, view: HomeView) -> None:
    async def blocks() -> int:
        data: StatvfsData = await view.statfs(CONTEXT)
        return int(data.f_blocks)

    assert await blocks() == POOL_BLOCKS
    a, b = await look_up(view, "a"), await look_up(view, "b")
    handle = await make_file(view, a, b"f")
    devices.trees["b"].statistics = lambda: TreeStatistics(4096, 22, 0, 0, 0, 0, 255)  # type: ignore[method-assign]
    assert await blocks() == devices.trees["a"].statistics().blocks
    await view.getattr(b, CONTEXT)
    assert await blocks() == 22
    await view.getattr(ROOT_INODE, CONTEXT)
    assert await blocks() == POOL_BLOCKS
    await view.getattr(b, CONTEXT)
    await view.forget([(b, 1)])
    view.sync_changes()
    assert await blocks() == POOL_BLOCKS
    await view.getattr(a, RequestContext())  # from threads that have no number here
    assert (await view.statfs(RequestContext())).f_blocks == POOL_BLOCKS
    await view.release(handle)
