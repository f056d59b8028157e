"""How long does it take to find ten edits among 100 000 files?

Expected: a walk looks at 200 000 inodes, some 30 us each in Python: 6 s. A program in C that stats as many files of a
kernel's file system, everything cached, takes 2 us each: some 0.4 s, which is less than a naive walk in another
language can need. The blocks that differ are some twenty of 64 KiB; reading the inode tables in them, a few
directories per edit for names, and comparing: 10 ms, however many files there are. Opening both volumes and reading the
pool's metadata is counted in. A file whose name is far from its inode costs a look into every directory, 1000 here:
50 us each.
"""

from __future__ import annotations

import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench.rig.harness import Bench, timed
from bench.rig.pools import make_files, open_pool
from cowfs.ext4.tools.mkfs import make_filesystem
from cowfs.ext4.volume import Volume
from cowfs.layers.changes import ThinPair, find_changes, walk_changes
from cowfs.layers.interface import Change, LayerRoot
from cowfs.layers.roots import ensure_root, find_root, write_layer_id
from cowfs.pool import Pool
from cowfs.steps import Steps, finish

THIN_SECTORS = (10 << 30) // 512
FILES_PER_DIRECTORY = 100
EDITS = 10
PARENT_ID, EDITED_ID, FAR_ID = 1, 2, 3

Find = Callable[[LayerRoot, LayerRoot], Steps[list[Change]]]
Place = tuple[int, bytes, int]


def run(bench: Bench) -> None:
    files = bench.size(100_000, 2000)
    table = make_files(bench.directory, data_blocks=2 * files + 4096, metadata_bytes=64 << 20)
    with closing(open_pool(table)) as pool:
        make_layers(pool, files)
        make_peer(bench.directory / "peer", files)

        def seconds(layer_id: int, find: Find) -> float:
            with open_roots(pool, layer_id) as open_both:
                found: list[list[Change]] = []
                taken = timed(lambda: found.append(finish(find(*open_both()))))
                assert found[0] == results.setdefault(layer_id, found[0])
                return 1000 * taken

        def by_blocks(layer_id: int) -> float:
            pair = ThinPair(pool, layer_id, PARENT_ID)
            return seconds(layer_id, lambda layer, parent: find_changes(layer, parent, pair))

        results: dict[int, list[Change]] = {}
        measured = bench.compare(
            f"{EDITS} edits among {files} files",
            {
                "walk of both trees": lambda: seconds(EDITED_ID, walk_changes),
                "find -printf, two trees": lambda: 1000 * timed(lambda: stat_peer(bench.directory / "peer")),
                "blocks that differ": lambda: by_blocks(EDITED_ID),
            },
            unit="ms",
        )
        assert len(results[EDITED_ID]) >= EDITS
        walked, peer, found = measured.values()
        bench.goal_ratio("walk / blocks that differ", walked, found, at_least=50)
        bench.goal_ratio("find -printf / blocks that differ", peer, found, at_least=10)
        bench.compare(
            "one edit, of a file moved far away before", {"blocks that differ": lambda: by_blocks(FAR_ID)}, unit="ms"
        )
        assert len(results[FAR_ID]) >= 2


@contextmanager
def open_roots(pool: Pool, layer_id: int) -> Iterator[Callable[[], tuple[LayerRoot, LayerRoot]]]:
    """Devices of a layer and its parent, and what opens their volumes, with nothing cached."""
    names = {"layer": layer_id, "parent": PARENT_ID}
    thins = [pool.activate(name, thin_id, THIN_SECTORS, read_only=True) for name, thin_id in names.items()]
    volumes: list[Volume] = []

    def open_both() -> tuple[LayerRoot, LayerRoot]:
        volumes.extend(Volume.open(thin, read_only=True) for thin in thins)
        return find_root(volumes[0]), find_root(volumes[1])

    try:
        yield open_both
    finally:
        for volume in volumes:
            volume.close()
        for thin in thins:
            thin.close()


def make_layers(pool: Pool, files: int) -> None:
    pool.create_thin(PARENT_ID)
    with closing(pool.activate("parent", PARENT_ID, THIN_SECTORS)) as thin:
        make_filesystem(thin)
        with closing(Volume.open(thin)) as volume:
            places = populate(volume, ensure_root(volume, (0, 0)).inode, files)
            directory, name, moved = places[0]
            volume.rename(directory, name, places[-1][0], b"moved")
    for layer_id in (EDITED_ID, FAR_ID):
        pool.create_snap(layer_id, PARENT_ID)
        with closing(pool.activate("layer", layer_id, THIN_SECTORS)) as thin, closing(Volume.open(thin)) as volume:
            write_layer_id(volume, f"layer {layer_id}", (0, 0))
            if layer_id == FAR_ID:
                volume.write(moved, 0, b"edited")
            else:
                edit(volume, random.Random(1).sample(places[1:], EDITS))


def populate(volume: Volume, root: int, files: int) -> list[Place]:
    """A tree of directories, each with a hundred small files; (directory, name, inode) of them."""
    rng = random.Random(0)
    directories, places = [root], []
    for number in range(files // FILES_PER_DIRECTORY):
        parent = rng.choice(directories[-200:])
        directory = volume.make_directory(parent, b"directory-%d" % number, 0o755, 0, 0).inode
        directories.append(directory)
        for index in range(FILES_PER_DIRECTORY):
            name = b"a file with number %d" % index
            inode = volume.make_node(directory, name, stat.S_IFREG | 0o644, 0, 0).inode
            volume.write(inode, 0, b"content")
            places.append((directory, name, inode))
    return places


def edit(volume: Volume, places: list[Place]) -> None:
    """Half of them written in place, the others deleted, changed in mode, or joined by a new one."""
    for number, (directory, name, inode) in enumerate(places):
        if number % 2:
            volume.write(inode, 0, b"edited")
        elif number % 3 == 0:
            volume.unlink(directory, name)
        elif number % 3 == 1:
            volume.set_attributes(inode, mode=0o600)
        else:
            volume.make_node(directory, b"new", stat.S_IFREG | 0o644, 0, 0)


def make_peer(directory: Path, files: int) -> None:
    """Two trees of as many files in the file system around."""
    for side in ("layer", "parent"):
        for number in range(files // FILES_PER_DIRECTORY):
            folder = directory / side / f"directory-{number // 10}" / f"directory-{number}"
            folder.mkdir(parents=True)
            for index in range(FILES_PER_DIRECTORY):
                (folder / f"a file with number {index}").touch()


def stat_peer(directory: Path) -> None:
    trees = [directory / "layer", directory / "parent"]
    subprocess.run(["find", *trees, "-printf", "%m%U%G%s%T@\n"], check=True, stdout=subprocess.DEVNULL)
