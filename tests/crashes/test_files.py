"""States of files: what fsync covers stays, the rest may go in any order, and nothing lost is what the program left."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from contextlib import closing

import pytest

from cowfs.crashes.files import FileHistory
from cowfs.crashes.history import Loss, State
from cowfs.crashes.naming import Namer, describe_loss, explain
from cowfs.crashes.planning import plan
from cowfs.ext4.tools.fsck import check_volume
from cowfs.ext4.volume import Volume
from cowfs.filetree import RENAME_EXCHANGE, ROOT_INODE, ServedTree
from cowfs.recording.operations import Operation, recording_tree
from cowfs.recording.recorder import Mark, Recorder, Recording
from cowfs.testing.blockdev import memory_device
from tests.crashes.recordings import no_paths
from tests.ext4.crash_world import State as Tree
from tests.ext4.crash_world import make_image, read_state

FILE = stat.S_IFREG | 0o644


class World:
    """A volume that is recorded, and its disk as it was before."""

    def __init__(self, image: bytes, prepare: Callable[[Volume], object] = lambda volume: None) -> None:
        disk = memory_device(image)
        with closing(Volume.open(disk)) as volume:
            prepare(volume)
        self.before = disk.pread(0, disk.size_bytes)
        self.volume = Volume.open(disk)
        self.recorder = Recorder("/tmp", "web", "posix")
        self.tree: ServedTree = recording_tree(self.volume, self.recorder)

    def history(self) -> FileHistory:
        recorder = self.recorder
        recording = Recording("posix", "web", [], recorder._operations, recorder._marks, [])
        recorder.close()
        return FileHistory(recording, Namer(recording.operations, no_paths))

    def left_by(self, history: FileHistory, state: State) -> Tree:
        """The tree of a state."""
        disk = memory_device(self.before)
        with closing(Volume.open(disk)) as volume:
            history.change(state).make(volume)
        assert check_volume(disk).clean, check_volume(disk).summary
        with closing(Volume.open(disk, read_only=True)) as volume:
            return read_state(volume)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_image(tmp_path_factory.mktemp("volume") / "image", ["-b", "1024"], 4 << 20).read_bytes()


def make(tree: ServedTree, name: bytes, content: bytes = b"", parent: int = ROOT_INODE) -> int:
    inode = tree.make_node(parent, name, FILE, 0, 0).inode
    if content:
        tree.write(inode, 0, content)
    return inode


def contents(tree: Tree) -> dict[bytes, bytes]:
    return {path: file.content for path, file in tree.items() if stat.S_ISREG(file.kind) or not file.kind}


def replaced(world: World, *, sync_file: bool, sync_directory: bool) -> FileHistory:
    """A file is replaced by a rename, then promised."""
    inode = make(world.tree, b"a.tmp", b"new" * 100)
    if sync_file:
        world.tree.sync_inode(inode, data_only=True)
    world.tree.rename(ROOT_INODE, b"a.tmp", ROOT_INODE, b"a")
    if sync_directory:
        world.tree.sync_inode(ROOT_INODE, data_only=False)
    world.recorder.mark("new")
    return world.history()


def seen(world: World, history: FileHistory, *, promised: bool) -> set[bytes | None]:
    """What `a` may hold after a crash."""
    return {
        contents(world.left_by(history, state)).get(b"a")
        for state in plan(history, states=None, seed=1)
        if bool(history.marks_at(state.position)) == promised
    }


def with_old(volume: Volume) -> None:
    make(volume, b"a", b"old")


def test_without_any_fsync_old_new_empty_and_zeros_are_possible(image: bytes) -> None:
    world = World(image, with_old)
    history = replaced(world, sync_file=False, sync_directory=False)
    assert seen(world, history, promised=True) == {b"old", b"new" * 100, b"", bytes(300)}


def test_fsync_of_the_file_leaves_old_or_new(image: bytes) -> None:
    world = World(image, with_old)
    history = replaced(world, sync_file=True, sync_directory=False)
    assert seen(world, history, promised=True) == {b"old", b"new" * 100}


def test_fsync_of_file_and_directory_leaves_what_was_promised(image: bytes) -> None:
    world = World(image, with_old)
    history = replaced(world, sync_file=True, sync_directory=True)
    assert seen(world, history, promised=True) == {b"new" * 100}
    assert b"old" in seen(world, history, promised=False)


def test_fsync_of_a_file_does_not_make_its_name_durable(image: bytes) -> None:
    world = World(image)
    inode = make(world.tree, b"a", b"1")
    world.tree.sync_inode(inode, data_only=False)
    world.recorder.mark("a")
    assert seen(world, world.history(), promised=True) == {None, b"1"}


def test_fdatasync_covers_the_size_and_not_the_mode(image: bytes) -> None:
    world = World(image, with_old)
    inode = world.tree.lookup(ROOT_INODE, b"a").inode
    world.tree.write(inode, 3, b"er")
    world.tree.set_attributes(inode, mode=0o600)
    world.tree.sync_inode(inode, data_only=True)
    history = world.history()
    lost = history.open_at(history.length)
    assert [history.subject(item)[0] for item in lost] == ["attributes"]
    tree = world.left_by(history, State(history.length, (Loss(lost[0]),)))
    assert contents(tree) == {b"a": b"older"}


def test_names_and_data_persist_in_any_order(image: bytes) -> None:
    """An older name of a file may stay, a later name may come alone, also below a directory that is new."""
    world = World(image, with_old)
    tree = world.tree
    directory = tree.make_directory(ROOT_INODE, b"d", stat.S_IFDIR | 0o755, 0, 0).inode
    make(tree, b"x", b"1", directory)
    tree.rename(directory, b"x", ROOT_INODE, b"y")
    tree.unlink(ROOT_INODE, b"a")

    history = world.history()
    names = [item for item in range(len(history.items)) if history.subject(item)[0] == "name"]
    mkdir, create, rename, unlink = names
    end = history.length

    def left(*lost: int) -> set[bytes]:
        return set(world.left_by(history, State(end, tuple(map(Loss, lost))))) - {b"lost+found"}

    assert left() == {b"d", b"y"}
    assert left(rename, unlink) == {b"a", b"d", b"d/x"}
    assert left(create) == {b"d", b"y"}
    assert left(mkdir) == {b"y"}
    assert left(mkdir, rename) == set()
    assert left(mkdir, create, rename, unlink) == {b"a"}


def test_a_torn_write_loses_sectors(image: bytes) -> None:
    world = World(image)
    make(world.tree, b"a", b"x" * 2048)
    history = world.history()
    (data,) = (item for item in range(len(history.items)) if history.subject(item)[0] == "data")
    tree = world.left_by(history, State(history.length, (Loss(data, (1, 3)),)))
    assert contents(tree)[b"a"] == (b"x" * 512 + bytes(512)) * 2


OPERATIONS: list[Callable[[ServedTree, random.Random, list[int]], object]] = [
    lambda tree, rng, directories: make(
        tree, pick(rng), rng.randbytes(rng.choice([0, 10, 6000])), rng.choice(directories)
    ),
    lambda tree, rng, directories: directories.append(
        tree.make_directory(rng.choice(directories), pick(rng), stat.S_IFDIR | 0o755, 0, 0).inode
    ),
    lambda tree, rng, directories: tree.make_symlink(rng.choice(directories), pick(rng), b"target", 0, 0),
    lambda tree, rng, directories: tree.unlink(rng.choice(directories), pick(rng)),
    lambda tree, rng, directories: tree.remove_directory(rng.choice(directories), pick(rng)),
    lambda tree, rng, directories: tree.link(find(tree, rng, directories), rng.choice(directories), pick(rng)),
    lambda tree, rng, directories: tree.rename(
        rng.choice(directories),
        pick(rng),
        rng.choice(directories),
        pick(rng),
        rng.choice([0, 0, RENAME_EXCHANGE]),
    ),
    lambda tree, rng, directories: tree.write(
        find(tree, rng, directories), rng.choice([0, 100, 4096, 9000]), rng.randbytes(rng.choice([5, 700, 5000]))
    ),
    lambda tree, rng, directories: tree.set_attributes(
        find(tree, rng, directories), size_bytes=rng.choice([0, 50, 4097, 12_000])
    ),
    lambda tree, rng, directories: tree.set_xattr(find(tree, rng, directories), b"user.x", rng.randbytes(4)),
    lambda tree, rng, directories: tree.sync_inode(rng.choice(directories), data_only=False),
    lambda tree, rng, directories: tree.sync_inode(find(tree, rng, directories), data_only=False),
]


def pick(rng: random.Random) -> bytes:
    return rng.choice([b"a", b"b", b"c", b"d"])


def find(tree: ServedTree, rng: random.Random, directories: list[int]) -> int:
    return tree.lookup(rng.choice(directories), pick(rng)).inode


def perform(tree: ServedTree, rng: random.Random, count: int) -> None:
    directories = [ROOT_INODE]
    for _ in range(count):
        try:
            rng.choice(OPERATIONS)(tree, rng, directories)
        except OSError:
            continue


def test_random_operations_without_a_loss_give_the_same_files(image: bytes, rng: random.Random) -> None:
    for _ in range(6):
        world = World(image, lambda volume: perform(volume, rng, 30))
        perform(world.tree, rng, 60)
        expected = read_state(world.volume)
        history = world.history()
        assert contents(world.left_by(history, State(history.length))) == contents(expected)
        assert set(world.left_by(history, State(history.length))) == set(expected)


def test_every_state_of_random_operations_is_a_sound_file_system(image: bytes, rng: random.Random) -> None:
    world = World(image, lambda volume: perform(volume, rng, 30))
    perform(world.tree, rng, 50)
    history = world.history()
    seen: dict[int, object] = {}
    for state in plan(history, states=60, seed=1):
        tree = world.left_by(history, state)
        assert seen.setdefault(history.key(state), tree) == tree


def test_what_was_lost_is_said_in_files_and_offsets() -> None:
    operations = [
        Operation("create", 1 << 32, ROOT_INODE, b"a.tmp", mode=FILE),
        Operation("write", 1 << 32, length=8, content=b"12345678"),
        Operation("rename", 1 << 32, ROOT_INODE, b"a.tmp", ROOT_INODE, b"a", replaced=12),
        Operation("write", 13, offset=100, length=5000, old_size=9000, content=bytes(5000)),
    ]
    recording = Recording("posix", "web", [], operations, [Mark("done", 0, 4)], [])
    history = FileHistory(recording, Namer(operations, no_paths))
    words = [history.describe(item) for item in range(len(history.items))]
    assert words == [
        "creation of a.tmp",
        "size of a.tmp, 0 to 8 bytes",
        "data of a.tmp, bytes 0 to 7",
        "rename of a.tmp to a",
        "data of old-13, bytes 100 to 4095",
        "data of old-13, bytes 4096 to 5099",
    ]

    def said(*lost: Loss, position: int = 4) -> str:
        return explain(history, State(position, lost))

    assert said(Loss(2)) == "rename of a.tmp to a persisted before its data"
    assert said(Loss(1)) == "rename of a.tmp to a persisted before its size"
    assert said(Loss(4)) == "data of old-13, bytes 4096 to 5099 persisted before data of old-13, bytes 100 to 4095"
    assert said(Loss(3), position=5) == "rename of a.tmp to a was lost although 'done' was promised"
    assert said(Loss(5), position=5) == "data of old-13, bytes 4096 to 5099 were lost although 'done' was promised"
    assert said(Loss(4, (0, 3))) == "data of old-13, bytes 100 to 4095 were torn"
    assert describe_loss(history, Loss(4, (0, 3))) == "data of old-13, bytes 100 to 4095, 2 of 8 sectors"
