"""States of files: what fsync covers stays, the rest may go in any order, and nothing lost is what the program left."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from contextlib import closing
from typing import cast

import pytest

from cowfs.crashes.files import Data, FileHistory, Size
from cowfs.crashes.history import Loss, State
from cowfs.crashes.naming import Namer, describe_loss, explain
from cowfs.crashes.planning import plan
from cowfs.errors import UsageError
from cowfs.ext4.tools.fsck import check_volume
from cowfs.ext4.volume import Volume
from cowfs.filetree import RENAME_EXCHANGE, ROOT_INODE, ServedTree
from cowfs.recording.operations import FIRST_NEW, Operation, recording_tree
from cowfs.recording.recorder import Mark, Recorder, Recording
from cowfs.recording.tree_change import NameChange, NewFile, TreeChange, TreeChanger
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
            TreeChanger(volume).make(history.change(state))
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


def replayed(history: FileHistory, state: State, before: bytes) -> bytes:
    """What a file holds, byte by byte: the effects of the operations that were not lost, one after the other."""
    lost = {loss.item: loss for loss in state.lost}
    content, size = bytearray(before), len(before)
    for item in range(history.issued_until(state.position)):
        effect, loss = history.effects[item], lost.get(item)
        if loss is not None and not loss.sectors:
            continue
        if isinstance(effect, Data):
            content.extend(bytes(max(0, effect.offset + len(effect.content) - len(content))))
            for at, byte in enumerate(effect.content, effect.offset):
                if loss is None or at // 512 not in loss.sectors:
                    content[at] = byte
        elif isinstance(effect, Size):
            if effect.cuts:
                del content[effect.size :]
            size = effect.size
    return bytes(content[:size].ljust(size, b"\0"))


def test_the_bytes_of_a_file_are_those_of_the_writes_that_were_not_lost(image: bytes, rng: random.Random) -> None:
    before = rng.randbytes(9000)
    world = World(image, lambda volume: make(volume, b"a", before))
    inode = world.tree.lookup(ROOT_INODE, b"a").inode
    for _ in range(12):
        if rng.random() < 0.3:
            world.tree.set_attributes(inode, size_bytes=rng.choice([0, 700, 4096, 6000, 12_000]))
        else:
            world.tree.write(inode, rng.choice([0, 100, 4096, 5000, 9000, 11_000]), rng.randbytes(rng.randint(1, 6000)))
    history = world.history()
    for state in plan(history, states=60, seed=1):
        assert contents(world.left_by(history, state))[b"a"] == replayed(history, state, before)


def test_a_new_file_is_one_step(image: bytes) -> None:
    """Neighbouring blocks are put together, and nothing is made aside, to be moved."""
    world = World(image)
    make(world.tree, b"a", b"x" * 20_000)
    history = world.history()
    change = history.change(State(history.length))
    assert [(one.offset, len(one.data), one.size) for one in change.content] == [(0, 20_000, -1)]
    called: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            called.append(name)
            return getattr(volume, name)

    with closing(Volume.open(memory_device(world.before))) as volume:
        TreeChanger(cast("ServedTree", Watched())).make(change)
    assert called == ["lookup", "restore"]


DIRECTORY = stat.S_IFDIR | 0o755


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([NameChange(FIRST_NEW + 1, b"a", FIRST_NEW), NameChange(FIRST_NEW, b"b", FIRST_NEW + 1)], "within itself"),
        ([NameChange(FIRST_NEW, b"a", FIRST_NEW)], "within itself"),
        ([NameChange(FIRST_NEW + 7, b"a", FIRST_NEW)], "new file 7, which it does not make"),
        ([NameChange(ROOT_INODE, b"a", FIRST_NEW + 7)], "new file 7, which it does not make"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(image: bytes, names: list[NameChange], words: str) -> None:
    files = [NewFile(FIRST_NEW + number, DIRECTORY, 0, 0) for number in range(2)]
    with closing(Volume.open(memory_device(image))) as volume, pytest.raises(UsageError, match=words):
        TreeChanger(volume).make(TreeChange(files, names, [], []))


def test_directories_that_are_within_each_other_are_gone(image: bytes) -> None:
    """When of three renames the middle one is lost, no path leads to them any more."""
    inodes: dict[bytes, int] = {}

    def prepare(volume: Volume) -> None:
        for name in (b"a", b"b"):
            inodes[name] = volume.make_directory(ROOT_INODE, name, DIRECTORY, 0, 0).inode
            make(volume, b"file", name, inodes[name])

    world = World(image, prepare)
    world.tree.rename(ROOT_INODE, b"a", inodes[b"b"], b"a")
    world.tree.rename(inodes[b"b"], b"a", ROOT_INODE, b"c")
    world.tree.rename(ROOT_INODE, b"b", inodes[b"a"], b"b")
    history = world.history()
    state = State(history.length, (Loss(1),))
    assert contents(world.left_by(history, state)) == {}
    assert contents(world.left_by(history, State(history.length))) == {b"c/file": b"a", b"c/b/file": b"b"}


def test_what_was_lost_is_said_in_files_and_offsets() -> None:
    operations = [
        Operation("create", 1 << 32, ROOT_INODE, b"a.tmp", mode=FILE),
        Operation("write", 1 << 32, length=8, content=b"12345678"),
        Operation("rename", 1 << 32, ROOT_INODE, b"a.tmp", ROOT_INODE, b"a", replaced=12),
        Operation("write", 13, offset=100, length=5000, old_size=9000, content=bytes(5000)),
        Operation("write", 13, offset=7, length=1, old_size=9000, content=b"x"),
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
        "data of old-13, byte 7",
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
