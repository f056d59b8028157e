"""Layers on the thin devices of an emulated pool, and an oracle that knows nothing of either way to compare them."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from cowfs.ext4.tools import fsck
from cowfs.ext4.tools.mkfs import make_filesystem
from cowfs.ext4.volume import Volume
from cowfs.layers.changes import block_changes, walk_changes
from cowfs.layers.changes.blocks import BlockWalk, changed_bytes_in
from cowfs.layers.changes.renames import Renames
from cowfs.layers.changes.walk import Walk
from cowfs.layers.interface import Change, ChangeKind, LayerRoot, PathChange
from cowfs.layers.roots import ensure_root, find_root, write_layer_id
from cowfs.pool import Pool, PoolTable, ThinDevice
from cowfs.steps import finish
from cowfs.thinmeta.delta import DeltaRange, changed_ranges
from cowfs.units import SECTOR_BYTES, Sectors
from cowfs_emulated import BACKEND
from tests.ext4.conftest import MIB, Clock

THIN_BYTES = 48 * MIB
# Small groups, so that inodes, tables and directories are spread over several of them.
SMALL_GROUPS = ["-b", "4096", "-g", "1024", "-N", "1024"]
FEATURES = {
    "default": SMALL_GROUPS,
    "plain": ["-b", "4096"],
    "scattered tables": [*SMALL_GROUPS, "-O", "^flex_bg,^resize_inode,meta_bg"],
    "1k-blocks": ["-b", "1024", "-N", "2048"],
    "no checksums": [*SMALL_GROUPS, "-O", "^metadata_csum"],
    "no file types": [*SMALL_GROUPS, "-O", "^filetype"],
    "large attributes": [*SMALL_GROUPS, "-O", "ea_inode"],
    "no extents": [*SMALL_GROUPS, "-O", "^extents,^64bit"],
}

Kinds = dict[bytes, str]


class Layer:
    """A thin device with an open volume."""

    def __init__(self, lab: Lab, thin: ThinDevice) -> None:
        self.lab = lab
        self.thin = thin
        self.volume = Volume.open(thin, now_ns=lab.clock)
        self.root = ensure_root(self.volume, (0, 0)).inode
        write_layer_id(self.volume, f"layer {thin.thin_id}", (0, 0))
        lab.layers.append(self)

    @property
    def layer_root(self) -> LayerRoot:
        return find_root(self.volume)

    def branch(self) -> Layer:
        """A layer made from this one as it is now."""
        self.volume.quiesce()
        thin_id = next(self.lab.thin_ids)
        self.lab.pool.create_snap(thin_id, self.thin.thin_id)
        return Layer(self.lab, self.lab.activate(thin_id))

    def inode(self, path: bytes) -> int:
        number = self.root
        for name in path.strip(b"/").split(b"/") if path.strip(b"/") else ():
            number = self.volume.lookup(number, name).inode
        return number

    def parent_and_name(self, path: bytes) -> tuple[int, bytes]:
        directory, _, name = path.rpartition(b"/")
        return self.inode(directory), name

    def write(self, path: bytes, content: bytes = b"", mode: int = 0o644) -> int:
        """Make a file, or write over the beginning of one."""
        parent, name = self.parent_and_name(path)
        try:
            inode = self.volume.lookup(parent, name).inode
        except FileNotFoundError:
            inode = self.volume.make_node(parent, name, stat.S_IFREG | mode, 0, 0).inode
        self.volume.write(inode, 0, content)
        return inode

    def mkdir(self, path: bytes) -> int:
        return self.volume.make_directory(*self.parent_and_name(path), 0o755, 0, 0).inode

    def unlink(self, path: bytes) -> None:
        self.volume.unlink(*self.parent_and_name(path))

    def rename(self, path: bytes, target: bytes, flags: int = 0) -> None:
        self.volume.rename(*self.parent_and_name(path), *self.parent_and_name(target), flags)

    def link(self, path: bytes, target: bytes) -> None:
        self.volume.link(self.inode(path), *self.parent_and_name(target))

    def remove(self, path: bytes) -> None:
        """With everything below."""
        remove_tree(self.volume, *self.parent_and_name(path))

    def close(self) -> None:
        self.lab.layers.remove(self)
        self.volume.close()
        result = fsck.check_volume(self.thin)
        self.thin.close()
        assert result.clean, result.summary


class Lab:
    """One pool, with an empty base for each set of features, made when first asked for."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.clock = Clock()
        self.thin_ids = itertools.count(1)
        self.layers: list[Layer] = []  # open ones
        self._bases: dict[tuple[str, ...], int] = {}
        self._names = itertools.count()

    def activate(self, thin_id: int, *, read_only: bool = False) -> ThinDevice:
        sectors = THIN_BYTES // SECTOR_BYTES
        return self.pool.activate(f"thin {next(self._names)}", thin_id, sectors, read_only=read_only)

    def base(self, options: Sequence[str] = SMALL_GROUPS) -> Layer:
        """An empty layer."""
        base_id = self._bases.get(tuple(options))
        if base_id is None:
            base_id = self._bases[tuple(options)] = next(self.thin_ids)
            self.pool.create_thin(base_id)
            with closing(self.activate(base_id)) as device:
                make_filesystem(device, extra_args=options)
        thin_id = next(self.thin_ids)
        self.pool.create_snap(thin_id, base_id)
        return Layer(self, self.activate(thin_id))

    def ranges(self, left_id: int, right_id: int) -> list[DeltaRange]:
        self.pool.commit()
        with closing(self.pool.open_metadata()) as device:
            return list(changed_ranges(device, left_id, right_id))

    def compare(self, layer: Layer, parent: Layer) -> Kinds:
        """What changed, as the oracle and both ways say."""
        layer.volume.quiesce()
        parent.volume.quiesce()
        ranges = self.ranges(layer.thin.thin_id, parent.thin.thin_id)
        expected = oracle(layer.layer_root, parent.layer_root)
        walked = finish(walk_changes(layer.layer_root, parent.layer_root))
        assert walked == expected
        assert finish(block_changes(layer.layer_root, parent.layer_root, ranges, layer.thin.block_bytes)) == expected
        self.path_changes(layer, parent)
        return kinds(expected)

    def path_changes(self, layer: Layer, parent: Layer) -> list[PathChange]:
        """What changed, with renames, as both ways say and no oracle denies."""
        layer.volume.quiesce()
        parent.volume.quiesce()
        roots = layer.layer_root, parent.layer_root
        differing = changed_bytes_in(self.ranges(layer.thin.thin_id, parent.thin.thin_id), layer.thin.block_bytes)
        found = finish(Renames(Walk(*roots)).run())
        judge_path_changes(found, *roots)
        assert finish(Renames(BlockWalk(*roots, differing)).run()) == found
        return found


def kinds(changes: list[Change]) -> Kinds:
    return {change.path: change.kind.letter for change in changes}


def remove_tree(volume: Volume, parent: int, name: bytes) -> None:
    found = volume.lookup(parent, name)
    if not stat.S_ISDIR(found.mode):
        volume.unlink(parent, name)
        return
    for entry in list(volume.list_directory(found.inode)):
        if entry.name not in (b".", b".."):
            remove_tree(volume, found.inode, entry.name)
    volume.remove_directory(parent, name)


def oracle(layer: LayerRoot, parent: LayerRoot) -> list[Change]:
    """The rule by the book: everything about every path of both sides, in two dicts."""
    new, old = facts(layer), facts(parent)
    found: dict[bytes, ChangeKind] = {}
    for path, about in new.items():
        if path not in old:
            found[path] = ChangeKind.ADD
        elif about != old[path]:
            found[path] = ChangeKind.MODIFY
    for path in old.keys() - new.keys():
        above = path.rpartition(b"/")[0]
        if not above or (above in new and stat.S_ISDIR(new[above][0])):
            found[path] = ChangeKind.DELETE
    for path in list(found):
        while path := path.rpartition(b"/")[0]:
            found.setdefault(path, ChangeKind.MODIFY)
    return [Change(path, kind) for path, kind in sorted(found.items())]


def judge_path_changes(changes: list[PathChange], layer: LayerRoot, parent: LayerRoot) -> None:
    """Applied to the paths of the parent, the changes must give the paths of the layer, and nothing less would do."""
    new, old = facts(layer), facts(parent)
    of = {letter: {change.path: change for change in changes if change.kind == letter} for letter in "AMDR"}
    assert changes == sorted(changes)
    assert sum(map(len, of.values())) == len(changes)

    def before(path: bytes) -> bytes:
        """Where a path, or what was deleted below it, was."""
        if path in of["R"]:
            old_path = of["R"][path].old_path
            assert old_path is not None
            return old_path
        above, slash, name = path.rpartition(b"/")
        return before(above) + slash + name if path else b""

    origins = {path: before(path) for path in new if path not in of["A"]}
    assert len(set(origins.values())) == len(origins)
    numbers, old_numbers = identities(layer), identities(parent)
    for path, origin in origins.items():
        is_modified = path in of["M"] or (path in of["R"] and of["R"][path].is_modified)
        assert (new[path] != old[origin]) == is_modified, (path, origin)
        assert path not in of["R"] or (numbers[path] == old_numbers[origin] and path not in old), (path, origin)
    for change in [*of["M"].values(), *of["D"].values()]:
        origin = before(change.path)
        assert change.old_path == (None if origin == change.path else origin)
    assert of["M"].keys() <= new.keys()
    assert of["A"].keys() <= new.keys()
    lost = old.keys() - set(origins.values())
    deleted = {before(path) for path in of["D"]}
    assert deleted <= lost
    modes = {path: (old[before(path)][0], new[path][0]) for path in of["M"]}
    replaced = {before(path) for path, (was, now) in modes.items() if stat.S_ISDIR(was) and not stat.S_ISDIR(now)}
    above = tuple(path + b"/" for path in deleted | replaced)
    assert lost == {path for path in lost if (path + b"/").startswith(above)}
    assert not {numbers[path] for path in of["A"]} & {old_numbers[path] for path in lost}


def identities(root: LayerRoot) -> dict[bytes, tuple[int, ...]]:
    found: dict[bytes, tuple[int, ...]] = {}
    for path in facts(root):
        inode = root.inode
        for name in path[1:].split(b"/"):
            inode = root.tree.lookup(inode, name).inode
        about = root.tree.attributes(inode)
        found[path] = about.inode, about.generation, about.crtime_ns, stat.S_IFMT(about.mode)
    return found


def facts(root: LayerRoot) -> dict[bytes, tuple[int, object]]:
    """By path: the mode, and all else."""
    tree, found = root.tree, dict[bytes, tuple[int, object]]()
    pending = [(b"", root.inode)] if root.inode else []
    while pending:
        above, directory = pending.pop()
        for entry in tree.list_directory(directory):
            if entry.name in (b".", b".."):
                continue
            path, about = above + b"/" + entry.name, tree.attributes(entry.inode)
            xattrs = {name: tree.get_xattr(entry.inode, name) for name in tree.list_xattrs(entry.inode)}
            content: object = None
            if stat.S_ISREG(about.mode):
                content = tree.read(entry.inode, 0, 1 << 24)
            elif stat.S_ISLNK(about.mode):
                content = tree.read_symlink(entry.inode)
            beside = None if stat.S_ISDIR(about.mode) else (about.size_bytes, about.mtime_ns, content)
            found[path] = about.mode, (about.uid, about.gid, about.rdev, xattrs, beside)
            if stat.S_ISDIR(about.mode):
                pending.append((path, entry.inode))
    return found


def make_pool(directory: Path, data_bytes: int = 4096 * MIB) -> Pool:
    sizes = {"data": data_bytes, "metadata": 16 * MIB}
    for name, size_bytes in sizes.items():
        with (directory / name).open("wb") as file:
            file.truncate(size_bytes)
    table = PoolTable(
        length_sectors=Sectors(sizes["data"] // SECTOR_BYTES),
        metadata_device=str(directory / "metadata"),
        data_device=str(directory / "data"),
        block_sectors=Sectors(128),
    )
    return BACKEND.open_pool("pool", table, durable=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with closing(make_pool(tmp_path_factory.mktemp("pool"))) as pool:
        yield Lab(pool)


@pytest.fixture
def make_base(lab: Lab) -> Iterator[Callable[..., Layer]]:
    """`make_base(options)`: an empty layer. What is open at the end is closed, and must be clean."""
    yield lab.base
    while lab.layers:
        lab.layers[0].close()
