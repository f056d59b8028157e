"""Layers that the kernel writes, compared inside a guest: by blocks, by walking, and by the kernel's own eyes."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from cowfs.ext4.tools.mkfs import make_filesystem
from cowfs.ext4.volume import Volume
from cowfs.layers.changes import ThinPair, find, find_changes, find_path_changes, walk_changes
from cowfs.layers.interface import Change
from cowfs.layers.roots import find_root
from cowfs.pool import PoolTable
from cowfs.steps import finish
from cowfs.units import Sectors
from cowfs_dmthin import BACKEND, DmPool, DmThin
from tests.layers.changes.conftest import judge_path_changes, kinds, oracle
from tests.uml.guest_checks import Checks, run_checks

check = Checks()
MIB = 1 << 20
THIN_SECTORS = 256 * MIB // 512
ROUNDS = 4


@contextlib.contextmanager
def a_pool(folder: Path) -> Iterator[DmPool]:
    sizes = {"metadata": 16 * MIB, "data": 768 * MIB}
    for name, size in sizes.items():
        with (folder / name).open("xb") as file:
            file.truncate(size)
    table = PoolTable(Sectors(sizes["data"] // 512), str(folder / "metadata"), str(folder / "data"), Sectors(128))
    with closing(BACKEND.open_pool("check-pool", table)) as pool:
        assert isinstance(pool, DmPool)
        yield pool


@contextlib.contextmanager
def mounted(pool: DmPool, thin_id: int, folder: Path) -> Iterator[Path]:
    point = folder / f"mnt-{thin_id}"
    point.mkdir(exist_ok=True)
    with closing(pool.activate(f"kernel-{thin_id}", thin_id, THIN_SECTORS)) as thin:
        assert isinstance(thin, DmThin)
        subprocess.run(["mount", "-t", "ext4", "-o", "strictatime", thin.node, point], check=True)
        try:
            (point / "rootfs").mkdir(exist_ok=True)
            yield point / "rootfs"
        finally:
            subprocess.run(["umount", point], check=True)


def compared(pool: DmPool, layer_id: int, parent_id: int) -> list[Change]:
    """What all ways agree on."""
    volumes = []
    for thin_id in (layer_id, parent_id):
        thin = pool.activate(f"ours-{thin_id}", thin_id, THIN_SECTORS, read_only=True)
        volumes.append((Volume.open(thin, read_only=True), thin))
    try:
        roots = [find_root(volume) for volume, _ in volumes]
        assert find.can_be_told_by_blocks(*roots)
        found = finish(find_changes(roots[0], roots[1], ThinPair(pool, layer_id, parent_id)))
        walked = finish(walk_changes(*roots))
        assert found == walked, f"by blocks alone: {set(found) - set(walked)}, walked: {set(walked) - set(found)}"
        assert found == oracle(*roots)
        judge_path_changes(finish(find_path_changes(roots[0], roots[1], ThinPair(pool, layer_id, parent_id))), *roots)
        return found
    finally:
        for volume, thin in volumes:
            volume.close()
            thin.close()


def populate(root: Path, rng: random.Random, directories: int) -> None:
    made = [root]
    for number in range(directories):
        directory = rng.choice(made[-20:]) / f"d{number}"
        directory.mkdir()
        made.append(directory)
        for index in range(rng.randrange(12)):
            (directory / f"f{index}").write_bytes(rng.randbytes(rng.choice([0, 10, 5000])))
    for index in range(400):
        (root / f"{index}{'n' * 200}").touch()


def edit(root: Path, rng: random.Random, count: int) -> None:
    for step in range(count):
        directories, files = [root], []
        for where, below, names in os.walk(root):
            below.sort()  # the order of an ext4 is another one in each
            directories.append(Path(where))
            files += [Path(where, name) for name in sorted(names)]
        directory, path, other = rng.choice(directories), rng.choice(files), rng.choice(files)
        new = directory / f"new-{step}-{rng.randrange(1000)}"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, FileExistsError):
            edit_once(rng.randrange(16), path, other, directory, new, rng)


def edit_once(which: int, path: Path, other: Path, directory: Path, new: Path, rng: random.Random) -> None:
    is_file = stat.S_ISREG(path.lstat().st_mode)
    if which == 0:
        new.write_bytes(rng.randbytes(3000))
    elif which == 1:
        new.mkdir()
        (new / "f").touch()
    elif which == 2 and is_file:
        with path.open("r+b") as file:
            file.write(b"in place")
    elif which == 3 and is_file:
        times = path.stat()
        with path.open("r+b") as file:
            file.write(b"X" * min(times.st_size, 5))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif which == 4:
        path.unlink()
    elif which == 5:
        path.rename(new)
    elif which == 6 and directory != directory.parent / "rootfs" and directory not in path.parents:
        directory.rename(path.parent / f"moved-{new.name}")
    elif which == 7 and is_file:
        os.link(path, new)
    elif which == 8 and is_file:
        path.chmod(rng.choice([0o600, 0o640, 0o755]))
    elif which == 9:
        os.chown(path, rng.randrange(3), 0, follow_symlinks=False)
    elif which == 10 and is_file:
        os.setxattr(path, "user.x", b"v" * rng.choice([1, 60, 2000]))  # equal large ones share a block
    elif which == 11 and is_file:
        path.read_bytes()  # changes the access time, and nothing else
        list(directory.iterdir())
    elif which == 12 and is_file:
        content, times = path.read_bytes(), path.stat()
        path.unlink()
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif which == 13 and is_file:
        path.replace(other)
    elif which == 14:
        subprocess.run(["rm", "-r", rng.choice([path, path.parent / "d7"])], check=False, stderr=subprocess.DEVNULL)
    else:
        os.symlink("target", new)


@check
def what_the_kernel_wrote_is_told_the_same_by_all(folder: Path) -> None:
    rng = random.Random(4)
    with a_pool(folder) as pool:
        pool.create_thin(1)
        with closing(pool.activate("new", 1, THIN_SECTORS)) as thin:
            make_filesystem(thin, extra_args=["-b", "4096", "-g", "4096", "-N", "8192"])
        with mounted(pool, 1, folder) as root:
            populate(root, rng, 150)
        for number in range(2, 2 + ROUNDS):
            pool.create_snap(number, number - 1)
            with mounted(pool, number, folder) as root:
                edit(root, rng, 30)
            found = compared(pool, number, number - 1)
            assert len({change.kind for change in found}) == 3, found
            compared(pool, number, 1)
        assert pool.status().held_root is None  # type: ignore[union-attr]


@check
def reading_is_no_change(folder: Path) -> None:
    with a_pool(folder) as pool:
        pool.create_thin(1)
        with closing(pool.activate("new", 1, THIN_SECTORS)) as thin:
            make_filesystem(thin)
        with mounted(pool, 1, folder) as root:
            populate(root, random.Random(5), 20)
        pool.create_snap(2, 1)
        with mounted(pool, 2, folder) as root:
            subprocess.run(["grep", "-r", "no such text", root], check=False)
            (root / "new").write_bytes(b"new")
        assert kinds(compared(pool, 2, 1)) == {b"/new": "A"}


if __name__ == "__main__":
    run_checks(check)
