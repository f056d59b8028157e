"""How long does a layer of 8000 files and 80 MB take from its archive into a device, and back?

Expected: 8000 files at some 130 us each, half of it for the inode and the name, half for the content and the block map:
about one second, and half of that to pack them. GNU tar has the kernel's file system and page cache below it, and the
same bytes to sync: it should be ahead, by less than two times.
"""

from __future__ import annotations

import io
import itertools
import random
import shutil
import subprocess
import tarfile
from functools import partial
from pathlib import Path

from bench.rig.harness import Bench, timed
from bench.rig.pools import make_files, open_pool
from cowfs.ext4.tools.mkfs import make_filesystem
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.layers import LayerRoot
from cowfs.layers.archive import apply_archive, write_archive
from cowfs.pool import Pool, ThinDevice
from cowfs.steps import finish
from cowfs.units import Sectors

DIRECTORIES = 80
FILE_BYTES_MAX = 20 << 10
DEVICE_SECTORS = Sectors((4 << 30) // 512)
BASE = 1


def make_archive(files_per_directory: int) -> bytes:
    chance = random.Random(1)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(DIRECTORIES):
            info = tarfile.TarInfo(f"usr/share/directory-{number}")
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
            for index in range(files_per_directory):
                info = tarfile.TarInfo(f"usr/share/directory-{number}/file-{index}")
                info.size, info.mtime = chance.randrange(FILE_BYTES_MAX), 1_600_000_000
                archive.addfile(info, io.BytesIO(chance.randbytes(info.size)))
    return stream.getvalue()


class Layers:
    """Layers on an emulated pool, each a snapshot of an empty ext4."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ids = itertools.count(BASE + 1)
        pool.create_thin(BASE)
        device = pool.activate("base", BASE, DEVICE_SECTORS)
        make_filesystem(device)
        device.close()

    def create(self) -> tuple[int, ThinDevice]:
        thin_id = next(self._ids)
        self._pool.create_snap(thin_id, BASE)
        return thin_id, self._pool.activate(f"layer-{thin_id}", thin_id, DEVICE_SECTORS)

    def remove(self, thin_id: int, device: ThinDevice) -> None:
        device.close()
        self._pool.delete(thin_id)


def unpack(layers: Layers, archive: bytes) -> float:
    thin_id, device = layers.create()

    def work() -> None:
        volume = Volume.open(device, journaled=False)  # as layers are that an archive is applied to
        root = volume.make_directory(ROOT_INODE, b"rootfs", 0o755, 0, 0).inode
        finish(apply_archive(LayerRoot(volume, root), io.BytesIO(archive)))
        volume.close()

    seconds = timed(work)
    layers.remove(thin_id, device)
    return seconds


def pack(root: LayerRoot) -> float:
    return timed(lambda: sum(map(len, write_archive(root, None))))


def tar_unpack(archive: Path, target: Path) -> float:
    target.mkdir()

    def work() -> None:
        subprocess.run(["tar", "-xf", archive, "-C", target], check=True)
        subprocess.run(["sync", "-f", target], check=True)

    seconds = timed(work)
    shutil.rmtree(target)
    return seconds


def tar_pack(source: Path) -> float:
    return timed(lambda: subprocess.run(["tar", "-cf", "-", "-C", source, "."], check=True, stdout=subprocess.PIPE))


def run(bench: Bench) -> None:
    archive = make_archive(bench.size(100, 10))
    on_disk = bench.directory / "layer.tar"
    on_disk.write_bytes(archive)
    tree = bench.directory / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-xf", on_disk, "-C", tree], check=True)
    pool = open_pool(make_files(bench.directory / "pool", data_blocks=1 << 15, metadata_bytes=32 << 20))
    try:
        layers = Layers(pool)
        found = bench.compare(
            "archive into a layer, durable",
            {
                "cowfs": partial(unpack, layers, archive),
                "GNU tar": partial(tar_unpack, on_disk, bench.directory / "new"),
            },
            unit="s",
        )
        bench.goal_ratio("seconds, cowfs / GNU tar", found["cowfs"], found["GNU tar"], at_most=2)
        _, device = layers.create()
        volume = Volume.open(device)
        root = LayerRoot(volume, volume.make_directory(ROOT_INODE, b"rootfs", 0o755, 0, 0).inode)
        finish(apply_archive(root, io.BytesIO(archive)))
        bench.compare(
            "layer into an archive",
            {"cowfs": partial(pack, root), "GNU tar": partial(tar_pack, tree)},
            unit="s",
        )
        volume.close()
    finally:
        pool.close()
